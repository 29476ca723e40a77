"""``diff``: what separates two versions: edits, matrices, and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from ledger import edits as edit_rows
from ledger.records import Edit, Job
from mend_core.probes import ProbeItem, ProbeResult, ProbeSuite, build_suite, sample_edits
from mend_core.probes.scoring import Scorer
from workers.building import weights_of
from workers.context import Context
from workers.jobs.payload import field, find_version, model_of
from workers.proving import RETAINED_EDITS, user_items
from workers.runtime import WarmModel, Weights, core_edit


def answers_of(
    warm: WarmModel,
    suite: ProbeSuite,
    weights: Weights,
    *,
    drafts: Sequence[ProbeResult] | None = None,
) -> list[ProbeResult]:
    """What a version answers to a suite; its base is asked only what it was never asked before."""
    scorer = Scorer(warm.base, suite, prefix=warm.prefix, reference=warm.answers.known())
    own = scorer.reference()
    warm.answers.keep(own)
    return scorer.score(weights, drafts=drafts) if weights else own


def diff(context: Context, job: Job) -> Mapping[str, Any]:
    """Compare two versions of a model.

    Payload: ``a``, ``b`` (number, alias or digest prefix), ``suite`` (probe items to ask as well).
    Answers are compared on the edits that differ, with their paraphrases and locality prompts, on a
    sample of the edits in both, and on the model's own suite.

    Returns:
        ``{"only_in_a", "only_in_b": [edit], "matrices": {name: {"norm", "relative"}}, "answers":
        [{"item_id", "prompt", "a", "b", "a_passed", "b_passed"}] (differing only), "asked",
        "suite_digest", "rebased"}``. Matrices are the edited ones alone: of two bases
        (``rebased``) the others differ too.

    Raises:
        SuiteInvalid: An item of ``suite`` breaks a rule of the format, or has the id of another.
    """
    model = model_of(context, job)
    a, a_set = find_version(context, model, job.payload.get("a", "previous"))
    b, b_set = find_version(context, model, field(job, "b", object, "production"))
    a_ids, b_ids = {m.edit_id for m in a_set}, {m.edit_id for m in b_set}

    def look(conn: Connection) -> tuple[list[Edit], list[Edit], list[Edit]]:
        return (
            list(edit_rows.get_many(conn, sorted(a_ids - b_ids))),
            list(edit_rows.get_many(conn, sorted(b_ids - a_ids))),
            list(edit_rows.get_many(conn, sorted(a_ids & b_ids))),
        )

    given = [ProbeItem.from_dict(record) for record in field(job, "suite", list, [])]
    only_a, only_b, both = context.transact(look)
    warm_a, warm_b = context.warm(a), context.warm(b)
    weights_a, weights_b = weights_of(warm_a, a, a_set), weights_of(warm_b, b, b_set)
    matrices: dict[str, dict[str, float]] = {}
    for name in sorted(set(weights_a) | set(weights_b)):
        own = warm_a.base.model.get_parameter(name)
        left = weights_a.get(name, own).double()
        right = weights_b.get(name, warm_b.base.model.get_parameter(name)).double()
        norm = float((right - left).norm())
        if norm:
            matrices[name] = {"norm": norm, "relative": norm / float(own.double().norm())}
    suite = build_suite(
        [core_edit(edit) for edit in (*only_a, *only_b)],
        (*user_items(model), *given),
        retained=sample_edits([core_edit(edit) for edit in both], RETAINED_EDITS),
    )
    answers: list[dict[str, Any]] = []
    if len(suite):
        before = answers_of(warm_a, suite, weights_a)
        after = answers_of(warm_b, suite, weights_b, drafts=before)
        answers = [
            {
                "item_id": x.item_id,
                "kind": x.kind.value,
                "prompt": x.prompt,
                "a": x.answer,
                "b": y.answer,
                "a_passed": x.passed,
                "b_passed": y.passed,
            }
            for x, y in zip(before, after, strict=True)
            if x.answer != y.answer
        ]
    return {
        "model": model.name,
        "a": {"number": a.number, "digest": a.digest},
        "b": {"number": b.number, "digest": b.digest},
        "rebased": a.base_digest != b.base_digest,
        "only_in_a": [{"id": e.id, "prompt": e.prompt, "target": e.target} for e in only_a],
        "only_in_b": [{"id": e.id, "prompt": e.prompt, "target": e.target} for e in only_b],
        "matrices": matrices,
        "answers": answers,
        "asked": len(suite),
        "suite_digest": suite.digest,
    }
