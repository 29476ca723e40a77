"""``revert``: a version without some edits, exactly as if they had never been there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from ledger import planning
from ledger import versions as version_rows
from ledger.errors import StaleParent
from ledger.records import Job, Model, Plan, SetMember, Version
from workers.context import Context, Held
from workers.jobs import Busy, JobInvalid
from workers.jobs.judged import judged
from workers.jobs.payload import model_of
from workers.pipeline import commit_plan

REPLANS = 5


def _edit_ids(job: Job) -> list[int]:
    ids = job.payload.get("edit_ids")
    if ids is None and "edit_id" in job.payload:
        ids = [job.payload["edit_id"]]
    if not isinstance(ids, list) or not ids or not all(type(i) is int for i in ids):
        raise JobInvalid("revert: field 'edit_ids' must be a list of at least one edit number")
    return ids


def _begun(context: Context, model: Model, job: Job) -> Version | None:
    """The version an earlier try of this job committed and did not judge."""
    known = context.transact(lambda conn: version_rows.list_versions(conn, model.id))
    for version in known:
        if version.meta.get("job") == job.id and version.gate.value == "pending":
            return version
    return None


def revert(context: Context, job: Job) -> Mapping[str, Any]:
    """Take edits out.

    Payload: ``edit_ids`` (or ``edit_id``), ``reason``.

    Returns:
        ``{"number", "digest", "gate", "promoted", "edits"}``: the digest is the one of the version
        built from the remaining set.
    """
    ids = _edit_ids(job)
    model = model_of(context, job)
    held = Held.take(context, model.id)
    if held is None:
        raise Busy(f"model {model.name} is being worked on")
    with held.keeper:
        try:
            return _revert(context, held, model, job, ids)
        finally:
            held.keeper.stop()
            held.release()


def _revert(
    context: Context, held: Held, model: Model, job: Job, ids: list[int]
) -> Mapping[str, Any]:
    def look(conn: Connection) -> tuple[Plan, list[SetMember]]:
        plan = planning.plan(conn, held.lease, remove_edits=ids)
        return plan, list(version_rows.live_set(conn, plan.parent.id))

    version = _begun(context, model, job)
    for attempt in range(REPLANS):
        if version is not None:
            break
        try:
            plan, parent_set = context.transact(look)
            if not plan.removes:
                raise JobInvalid(
                    f"revert: none of the edits {', '.join(map(str, ids))} is in version "
                    f"{plan.parent.number}; nothing to take out"
                )
            warm = context.warm(plan.parent)
            version = commit_plan(
                context, held, warm, plan, parent_set, meta={"job": job.id, "reverts": ids}
            )
        except StaleParent:
            if attempt == REPLANS - 1:
                raise
    assert version is not None
    _, told = judged(context, model, version)
    return told | {"model": model.name, "edits": ids}
