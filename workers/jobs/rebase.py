"""``rebase``: replay live edits on another base, with another editor, or both.

Every edit is tried in memory first, so that `dry_run` answers the question without changing
anything. Then the edits that hold become the model's next version, on the new base: judged by the
gate against the version before it, promoted by a person, and undone by a rollback like any other.
With ``name`` they become a model of its own instead, and the old one stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from ledger import batches as batch_rows
from ledger import edits as edit_rows
from ledger import footing, planning
from ledger import models as model_rows
from ledger import versions as version_rows
from ledger.records import Edit as LedgerEdit
from ledger.records import Editor, Job, Model, SetMember, Version
from ledger.requests import Asked, EditRequest
from mend_core.factors import version_digest
from mend_core.models import load_base
from mend_core.probes.suites import UNCHANGED_KINDS
from workers import editors
from workers.context import Context, Held
from workers.factoring import factor_record
from workers.jobs import Busy, JobInvalid
from workers.jobs.judged import judged
from workers.jobs.payload import field, find_version, model_of
from workers.pipeline import commit_plan
from workers.proving import Verdict, policy_of
from workers.replay import Fate, Replay, replay
from workers.runtime import WarmModel, core_edit

CHANGED_LIMIT = 200
"""Changed answers a result lists before it only counts them."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where the edits are to go.

    Attributes:
        model: The model with the new base, editor and composition; its editor is not registered.
        warm: It, loaded.
    """

    model: Model
    warm: WarmModel


def _ground(context: Context, job: Job, model: Model) -> Ground:
    """Load the new base and editor.

    Raises:
        JobInvalid: It is what the model stands on already.
        ModelError: The base cannot be loaded.
        EditorError: The editor cannot be loaded, or was made for another base.
    """
    source = field(job, "source", str, model.source)
    dtype = str(model.settings.get("dtype", "float32"))
    base = load_base(source, device=context.config.device, dtype=dtype)
    kept = editors.keep_for(context.config, field(job, "editor", str, editors.SHIPPED), base)
    editor = kept.editor
    there = replace(
        model,
        source=source,
        base_digest=base.digest,
        editor=Editor(
            id=0,
            digest=editor.digest,
            kind=editor.kind,
            base_digest=base.digest,
            path=str(kept.path),
            meta=kept.card,
            created_at=datetime.now(UTC),
        ),
        composition=editor.composition.to_dict(),
    )
    if (base.digest, editor.digest) == (model.base_digest, model.editor.digest):
        raise JobInvalid(
            f"rebase: model {model.name} stands on this base with this editor already; give "
            "another base, another editor, or both"
        )
    return Ground(there, context.models.get(there, base))


def _editor_row(conn: Connection, ground: Ground, actor: str) -> Editor:
    editor = ground.model.editor
    return model_rows.register_editor(
        conn,
        digest=editor.digest,
        kind=editor.kind,
        base_digest=editor.base_digest,
        path=editor.path,
        meta=editor.meta,
        actor=actor,
    )


def _told(rows: Sequence[LedgerEdit], tried: Replay) -> list[dict[str, Any]]:
    return [
        {
            "id": row.id,
            "prompt": row.prompt,
            "target": row.target,
            "fate": tried.told[str(row.id)].fate.value,
            "answer": tried.told[str(row.id)].answer,
            "says": tried.told[str(row.id)].says,
        }
        for row in rows
    ]


def rebase(context: Context, job: Job) -> Mapping[str, Any]:
    """Replay a model's live edits on another base or with another editor.

    Payload: ``source`` (new base; default: the present one), ``editor`` (path, or "shipped"; made
    for that base), ``dry_run``, ``promote`` (default False), ``reason``, ``name`` (register a model
    of its own instead), ``version`` (whose edits; with ``name`` or ``dry_run`` only, default
    "candidate": what the next version builds on).

    Returns:
        ``{"edits": [{"id", "prompt", "target", "fate", "answer", "says"}], "counts", "from",
        "base_digest", "editor_digest"}``, and what became of it: ``number``, ``digest``, ``gate``,
        ``promoted``, ``changed_answers``; or ``name`` and ``submitted``.
    """
    model = model_of(context, job)
    name, dry = str(job.payload.get("name") or ""), bool(job.payload.get("dry_run", False))
    which = job.payload.get("version") or "candidate"
    if dry or name:
        version, members = find_version(context, model, which)
        return _look(context, job, model, version, members, name="" if dry else name)
    if which != "candidate":
        raise JobInvalid(
            "rebase: the next version of a model is built on its candidate; give 'version' only "
            "with 'dry_run' or 'name', or roll back to that version first"
        )
    held = Held.take(context, model.id)
    if held is None:
        raise Busy(f"model {model.name} is being worked on")
    with held.keeper:
        try:
            return _rebase(context, held, job)
        finally:
            held.keeper.stop()
            held.release()


def _try(
    context: Context, job: Job, model: Model, version: Version, members: Sequence[SetMember]
) -> tuple[Ground, list[LedgerEdit], Replay, dict[str, Any]]:
    rows = list(
        context.transact(lambda conn: edit_rows.get_many(conn, [m.edit_id for m in members]))
    )
    ground = _ground(context, job, model)
    score = policy_of(model).hard.own_prompt_score
    tried = replay(context, ground.warm, [core_edit(row) for row in rows], score)
    said = {
        "model": model.name,
        "from": {
            "number": version.number,
            "digest": version.digest,
            "base_digest": version.base_digest,
            "editor_digest": version.editor_digest,
        },
        "base_digest": ground.model.base_digest,
        "editor_digest": ground.model.editor.digest,
        "edits": _told(rows, tried),
        "counts": tried.counts(),
    }
    return ground, rows, tried, said


def _look(
    context: Context,
    job: Job,
    model: Model,
    version: Version,
    members: Sequence[SetMember],
    *,
    name: str,
) -> dict[str, Any]:
    """Tell only; with a name, register a model of its own and submit the edits it needs to it."""
    ground, rows, tried, said = _try(context, job, model, version, members)
    if not name:
        return said
    wanted = {Fate.HOLDS, Fate.NO_LONGER_HOLDS}
    requests = [_request(row) for row in rows if tried.told[str(row.id)].fate in wanted]

    def write(conn: Connection) -> None:
        new = model_rows.register(
            conn,
            name=name,
            source=ground.model.source,
            base_digest=ground.model.base_digest,
            editor_id=_editor_row(conn, ground, job.requested_by).id,
            composition=ground.model.composition,
            version_digest=version_digest(
                ground.model.base_digest,
                ground.model.editor.digest,
                dict(ground.model.composition),
                (),
            ),
            policy=dict(model.policy),
            policy_digest=model.policy_digest,
            settings=dict(model.settings) | {"rebased_from": model.name},
            approval=model.approval,
            auto_promote=model.auto_promote,
            max_attempts=model.max_attempts,
            actor=job.requested_by,
        )
        if requests:
            edit_rows.submit_many(conn, new.id, requests, actor=context.actor, origin="rebase")

    context.transact(write)
    return said | {"name": name, "submitted": len(requests)}


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


def _begun(conn: Connection, model: Model, job: Job) -> Version | None:
    """The version an earlier try of this job committed and did not judge."""
    for version in version_rows.pending(conn, model.id):
        if version.meta.get("job") == job.id:
            return version
    return None


def _rebase(context: Context, held: Held, job: Job) -> Mapping[str, Any]:
    """Commit, judge and record the model's next version, on the new base."""
    model = model_of(context, job)
    if context.transact(lambda conn: batch_rows.current(conn, model.id)) is not None:
        raise Busy(f"a batch of model {model.name} is on its way into a version")
    version = context.transact(lambda conn: _begun(conn, model, job))
    if version is None:
        version = _commit(context, held, job, model)
    promote = bool(job.payload.get("promote", False))
    verdict, told = judged(context, model, version, promote=promote)
    changed = changed_answers(verdict)
    return {
        **version.meta["rebase"],
        **told,
        "changed_answers": changed[:CHANGED_LIMIT],
        "changed": len(changed),
    }


def _commit(context: Context, held: Held, job: Job, model: Model) -> Version:
    parent, members = find_version(context, model, "candidate")
    ground, _, tried, said = _try(context, job, model, parent, members)
    warm = ground.warm
    factors = {int(edit_id): factor for edit_id, factor in tried.factors.items()}
    warm.factors.put_many(list(factors.values()))
    kept = [SetMember(edit_id, factors[edit_id].digest) for edit_id in sorted(factors)]

    def write(conn: Connection) -> Any:
        editor = _editor_row(conn, ground, job.requested_by)
        records = [factor_record(factor) for factor in factors.values()]
        footing.keep_factors(conn, ground.model.base_digest, editor, records)
        return planning.plan_rebase(conn, held.lease, kept), editor

    plan, editor = context.transact(write)
    return commit_plan(
        context,
        held,
        warm,
        plan,
        (),
        meta={"job": job.id, "rebase": said, "reason": str(job.payload.get("reason") or "")},
        onto=replace(ground.model, editor=editor),
    )


def changed_answers(verdict: Verdict) -> list[dict[str, str]]:
    """Items that edits should leave alone, where the new base answers otherwise than the parent.

    The gate compares each version with its own base; what a change of the base itself does to
    users is for a person to see.
    """
    before = {r.item_id: r for r in verdict.parent}
    return [
        {
            "item_id": r.item_id,
            "kind": r.kind.value,
            "prompt": r.prompt,
            "before": before[r.item_id].answer,
            "after": r.answer,
        }
        for r in verdict.results
        if r.kind in UNCHANGED_KINDS and r.answer != before[r.item_id].answer
    ]
