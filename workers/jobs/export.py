"""``export`` and ``materialise``: a version as files another server can load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ledger.records import Job, Model
from mend_core.factors import export_merged, export_peft, weights_digest
from workers.context import Context
from workers.jobs import JobInvalid
from workers.jobs.payload import field, find_version, model_of, weights_by_name

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
    if style == "merged":
        export_merged(warm.base, weights, folder)
        return said | {"weights_digest": weights_digest(weights)}
    _, members = find_version(context, model, which)
    if not members:
        raise JobInvalid(
            f"export: version {version.number} is the base itself; an adapter of it would be empty"
        )
    rows = (warm.factors.get(m.factor_digest) for m in members)
    report = export_peft(
        warm.base, warm.editor.grid, warm.composition, rows, folder, max_rank=max_rank
    )
    return said | {
        "rank": report.rank,
        "exact_rank": report.exact_rank,
        "relative_error": report.relative_error,
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
