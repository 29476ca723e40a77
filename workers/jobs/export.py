"""``export`` and ``materialise``: a version as files another server can load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from ledger import edits, gates
from ledger.records import Edit, Job, Model, SetMember, Version
from mend_core.factors import Provenance, export_merged, export_peft, weights_digest
from workers.context import Context
from workers.jobs import JobInvalid
from workers.jobs.payload import field, find_version, model_of, weights_by_name
from workers.runtime import WarmModel

FORMATS = ("merged", "peft")


def write_export(
    context: Context,
    model: Model,
    which: object,
    *,
    style: str,
    folder: Path,
    max_rank: int | None = None,
) -> dict[str, Any]:
    """Write a version to an empty folder.

    Raises:
        JobInvalid: An unknown format, or an adapter of the base itself.
        StoreError: The folder is not empty, or there is no room.
    """
    if style not in FORMATS:
        raise JobInvalid(f"export: format {style!r} is not one of {', '.join(FORMATS)}")
    warm, version, weights = weights_by_name(context, model, which)
    said: dict[str, Any] = {
        "model": model.name,
        "number": version.number,
        "digest": version.digest,
        "format": style,
        "folder": str(folder),
    }
    _, members = find_version(context, model, which)
    about = _provenance(context, model, warm, version, members)
    if style == "merged":
        export_merged(warm.base, weights, folder, about)
        return said | {"weights_digest": weights_digest(weights)}
    if not members:
        raise JobInvalid(
            f"export: version {version.number} is the base itself; an adapter of it would be empty"
        )
    rows = (warm.factors.get(m.factor_digest) for m in members)
    report = export_peft(
        warm.base, warm.editor.grid, warm.composition, rows, folder, max_rank=max_rank, about=about
    )
    return said | {
        "rank": report.rank,
        "exact_rank": report.exact_rank,
        "relative_error": report.relative_error,
    }


def _provenance(
    context: Context,
    model: Model,
    warm: WarmModel,
    version: Version,
    members: Sequence[SetMember],
) -> Provenance:
    """What the ledger says of a version."""

    def look(conn: Connection) -> tuple[list[Edit], list[dict[str, Any]]]:
        ids = [member.edit_id for member in members]
        return edits.get_many(conn, ids), gates.decisions(conn, version.id)

    rows, decisions = context.transact(look)
    return Provenance(
        digest=version.digest,
        editor=warm.editor.kind,
        editor_digest=warm.editor.digest,
        edits=[
            {"id": row.id, "prompt": row.prompt, "target": row.target, "subject": row.subject}
            for row in rows
        ],
        name=model.name,
        number=version.number,
        gate=_gate(model, version, decisions),
        composition=warm.composition.to_dict(),
    )


def _gate(
    model: Model, version: Version, decisions: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """What the gate said last, and who let the version through in spite of it; None if neither."""
    if not decisions:
        return None
    # A person's override repeats the gate's checks in a decision of its own, with a reason.
    judged = next((one for one in decisions if one["override_reason"] is None), decisions[0])
    present = judged["policy_digest"] == model.policy_digest
    return {
        "outcome": str(judged["outcome"]),
        "policy": model.policy.get("name") if present else judged["policy_digest"],
        "policy_digest": judged["policy_digest"],
        "suite_digest": judged["suite_digest"],
        "decided_at": judged["created_at"].isoformat(),
        "by": judged["actor"],
        "overridden_by": version.overridden_by,
        "override_reason": decisions[0]["override_reason"] if version.overridden_by else None,
        "checks": [dict(check) for check in judged["checks"]],
    }


def export(context: Context, job: Job) -> Mapping[str, Any]:
    """Export a version.

    Payload: ``version`` (default "production"), ``format`` ("merged" or "peft"), ``folder``
    (absolute, empty or absent), ``max_rank`` (peft only).
    """
    folder = Path(field(job, "folder", str))
    if not folder.is_absolute():
        raise JobInvalid("export: field 'folder' must be an absolute path on the worker's machine")
    rank = job.payload.get("max_rank")
    if rank is not None and (not isinstance(rank, int) or rank < 1):
        raise JobInvalid("export: field 'max_rank' must be a whole number above 0")
    return write_export(
        context,
        model_of(context, job),
        job.payload.get("version", "production"),
        style=field(job, "format", str, "merged"),
        folder=folder,
        max_rank=rank,
    )


def materialise(context: Context, job: Job) -> Mapping[str, Any]:
    """Materialise a version in this worker's memory and name its weights.

    Payload: ``version`` (default "production").
    """
    model = model_of(context, job)
    which = job.payload.get("version", "production")
    _, version, weights = weights_by_name(context, model, which)
    return {
        "model": model.name,
        "number": version.number,
        "digest": version.digest,
        "weights_digest": weights_digest(weights),
        "matrices": sorted(weights),
        "bytes": sum(t.nbytes for t in weights.values()),
    }
