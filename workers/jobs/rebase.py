"""``rebase``: replay all live edits on a new base, and say which hold and which are not needed.

A version belongs to one base, so a rebase registers a new model (new base, editor made for it, the
old model's policy) and submits to it every live edit the new base does not know yet; from there the
ordinary pipeline builds, probes and promotes. Before anything is registered, every edit is tried in
memory, so that `dry_run` answers the question without changing anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from ledger import edits as edit_rows
from ledger import models as model_rows
from ledger.records import Edit as LedgerEdit
from ledger.records import Job, Model
from ledger.requests import Asked, EditRequest
from mend_core.datasets.edit import Edit
from mend_core.editors.base import FactorEditor, load_editor
from mend_core.errors import EditError, EditorMismatch
from mend_core.factors import GridRows, compose, materialise, version_digest
from mend_core.models import Base, load_base
from mend_core.probes import ProbeItem, ProbeKind, ProbeSuite
from mend_core.probes.scoring import Scorer
from workers.context import Context
from workers.jobs import JobInvalid
from workers.jobs.payload import field, find_version, model_of
from workers.runtime import core_edit


def _suite(edits: Sequence[Edit]) -> ProbeSuite:
    return ProbeSuite(
        tuple(
            ProbeItem(f"edit:{e.id}", ProbeKind.EDIT, e.prompt, (e.target,), "new", e.id)
            for e in edits
        )
    )


def _taken(results: Sequence[Any]) -> set[str]:
    return {r.edit_id for r in results if r.passed and r.edit_id is not None}


def try_on(
    context: Context, base: Base, editor: FactorEditor, edits: Sequence[Edit]
) -> dict[str, tuple[str, str]]:
    """Each edit's fate on a base: id → (fate, explanation).

    Fates: ``not_needed`` (the base answers so already), ``holds``, ``no_longer_holds`` (applied
    together with the others, its own prompt is not answered so), ``cannot_be_applied``.
    """
    fates: dict[str, tuple[str, str]] = {}
    if not edits:
        return fates
    known = _taken(Scorer(base, _suite(edits)).reference())
    fates.update(dict.fromkeys(known, ("not_needed", "the new base answers so by itself")))
    needed = [e for e in edits if e.id not in known]
    rows: list[GridRows] = []
    for start in range(0, len(needed), context.config.chunk_edits):
        context.check()
        for factor in editor.factor(base, needed[start : start + context.config.chunk_edits]):
            try:
                if isinstance(factor, EditError):
                    raise factor
                rows.append(editor.grid.encode(factor))
            except EditError as error:
                fates[error.edit_id] = ("cannot_be_applied", str(error))
    tried = [e for e in needed if e.id not in fates]
    if tried:
        weights = materialise(base, compose(editor.composition, editor.grid, None, rows))
        took = _taken(Scorer(base, _suite(tried)).score(weights))
        for edit in tried:
            holds = edit.id in took
            fates[edit.id] = (
                ("holds", "applied and answered")
                if holds
                else ("no_longer_holds", "applied, but its own prompt is not answered so")
            )
    return fates


def _register(
    context: Context,
    old: Model,
    *,
    name: str,
    base: Base,
    source: str,
    editor: FactorEditor,
    path: str,
    requests: Sequence[EditRequest],
) -> tuple[Model, int]:
    """Register the new model and submit its edits, in one transaction."""
    composition = editor.composition.to_dict()

    def write(conn: Connection) -> tuple[Model, int]:
        row = model_rows.register_editor(
            conn,
            digest=editor.digest,
            kind=editor.kind,
            base_digest=base.digest,
            path=path,
            meta={"rebased_from": old.name},
            actor=context.actor,
        )
        new = model_rows.register(
            conn,
            name=name,
            source=source,
            base_digest=base.digest,
            editor_id=row.id,
            composition=composition,
            version_digest=version_digest(base.digest, editor.digest, composition, ()),
            policy=dict(old.policy),
            policy_digest=old.policy_digest,
            settings=dict(old.settings) | {"rebased_from": old.name},
            approval=old.approval,
            auto_promote=old.auto_promote,
            max_attempts=old.max_attempts,
            actor=context.actor,
        )
        if requests:
            edit_rows.submit_many(conn, new.id, requests, actor=context.actor, origin="rebase")
        return new, len(requests)

    return context.transact(write)


def _request(edit: LedgerEdit) -> EditRequest:
    return EditRequest(
        prompt=edit.prompt,
        target=edit.target,
        subject=edit.subject,
        relation=edit.relation,
        paraphrases=edit.paraphrases,
        locality=tuple(Asked(prompt=p, answer=a) for p, a in edit.locality),
        portability=tuple(Asked(prompt=p, answer=a) for p, a in edit.portability),
        reason=edit.reason,
        source=edit.source,
        priority=edit.priority,
        idempotency_key=f"rebase:{edit.id}",
    )


def rebase(context: Context, job: Job) -> Mapping[str, Any]:
    """Replay a model's live edits on a new base.

    Payload: ``source`` (new base), ``editor`` (path of an editor made for it), ``name`` (of the
    new model), ``version`` (whose edits; default "production"), ``dry_run``.

    Returns:
        ``{"edits": [{"id", "prompt", "target", "fate", "says"}], "counts", "name", "submitted"}``.
    """
    old = model_of(context, job)
    source, path = field(job, "source", str), field(job, "editor", str)
    dry = bool(job.payload.get("dry_run", False))
    name = str(job.payload.get("name") or "")
    version, members = find_version(context, old, job.payload.get("version", "production"))
    rows = context.transact(lambda conn: edit_rows.get_many(conn, [m.edit_id for m in members]))
    base = load_base(source, device=context.config.device)
    editor = load_editor(path)
    if not isinstance(editor, FactorEditor):
        raise EditorMismatch(f"a {editor.kind} editor gives no factors; use mend, malmen or ultra")
    editor.check(base)
    fates = try_on(context, base, editor, [core_edit(row) for row in rows])
    said = [
        {
            "id": row.id,
            "prompt": row.prompt,
            "target": row.target,
            "fate": fates[str(row.id)][0],
            "says": fates[str(row.id)][1],
        }
        for row in rows
    ]
    counts: dict[str, int] = {}
    for fate, _ in fates.values():
        counts[fate] = counts.get(fate, 0) + 1
    result: dict[str, Any] = {
        "model": old.name,
        "from": {"number": version.number, "digest": version.digest},
        "base_digest": base.digest,
        "edits": said,
        "counts": counts,
        "name": name or None,
        "submitted": 0,
    }
    if dry:
        return result
    if not name:
        raise JobInvalid("rebase: field 'name' is missing: what should the new model be called?")
    wanted = [r for r in rows if fates[str(r.id)][0] in ("holds", "no_longer_holds")]
    _, submitted = _register(
        context,
        old,
        name=name,
        base=base,
        source=source,
        editor=editor,
        path=path,
        requests=[_request(r) for r in wanted],
    )
    return result | {"submitted": submitted}
