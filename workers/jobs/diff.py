"""``diff``: what separates two versions: edits, matrices, and answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from ledger import edits as edit_rows
from ledger.records import Job
from mend_core.probes import build_suite
from mend_core.probes.scoring import Scorer
from workers.building import weights_of
from workers.context import Context
from workers.jobs.payload import field, find_version, model_of
from workers.proving import user_items
from workers.runtime import core_edit


def diff(context: Context, job: Job) -> Mapping[str, Any]:
    """Compare two versions of a model.

    Payload: ``a``, ``b`` (number, alias or digest prefix). Answers are compared on the edits that
    differ, with their paraphrases and locality prompts, and on the model's own suite.

    Returns:
        ``{"only_in_a", "only_in_b": [edit], "matrices": {name: {"norm", "relative"}}, "answers":
        [{"item_id", "prompt", "a", "b"}] (differing only), "asked"}``.
    """
    model = model_of(context, job)
    warm = context.models.get(model)
    a, a_set = find_version(context, model, job.payload.get("a", "previous"))
    b, b_set = find_version(context, model, field(job, "b", object, "production"))
    a_ids, b_ids = {m.edit_id for m in a_set}, {m.edit_id for m in b_set}

    def look(conn: Connection) -> tuple[list[Any], list[Any]]:
        return (
            list(edit_rows.get_many(conn, sorted(a_ids - b_ids))),
            list(edit_rows.get_many(conn, sorted(b_ids - a_ids))),
        )

    only_a, only_b = context.transact(look)
    weights_a, weights_b = weights_of(warm, a, a_set), weights_of(warm, b, b_set)
    own = {m.name: m.weight for m in warm.editor.matrices_of(warm.base)}
    matrices: dict[str, dict[str, float]] = {}
    for name in sorted(set(weights_a) | set(weights_b)):
        left = weights_a.get(name, own[name]).double()
        right = weights_b.get(name, own[name]).double()
        norm = float((right - left).norm())
        if norm:
            matrices[name] = {"norm": norm, "relative": norm / float(own[name].double().norm())}
    suite = build_suite([core_edit(edit) for edit in (*only_a, *only_b)], user_items(model))
    answers: list[dict[str, str]] = []
    if len(suite):
        scorer = Scorer(warm.base, suite, prefix=warm.prefix)
        before = scorer.score(weights_a) if weights_a else scorer.reference()
        after = scorer.score(weights_b, drafts=before) if weights_b else scorer.reference()
        answers = [
            {
                "item_id": x.item_id,
                "kind": x.kind.value,
                "prompt": x.prompt,
                "a": x.answer,
                "b": y.answer,
            }
            for x, y in zip(before, after, strict=True)
            if x.answer != y.answer
        ]
    return {
        "model": model.name,
        "a": {"number": a.number, "digest": a.digest},
        "b": {"number": b.number, "digest": b.digest},
        "only_in_a": [{"id": e.id, "prompt": e.prompt, "target": e.target} for e in only_a],
        "only_in_b": [{"id": e.id, "prompt": e.prompt, "target": e.target} for e in only_b],
        "matrices": matrices,
        "answers": answers,
        "asked": len(suite),
    }
