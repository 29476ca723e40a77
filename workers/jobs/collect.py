"""``collect``: free the files that no alias, parent chain, hold or live edit needs."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from ledger import aliases, models, retention, versions
from ledger.records import Job
from mend_core.factors import FactorStore, VersionStore
from workers.context import Context
from workers.jobs.payload import field, model_of

KEEP_LAST_DEFAULT = 10
GRACE_SECONDS = 3600.0
"""Files younger than this stay: a worker may be about to commit what they belong to."""


def collect(context: Context, job: Job) -> Mapping[str, Any]:
    """Collect a model's old versions, then every file nobody needs, exports of hooks included.

    Payload: ``keep_last`` (versions kept beside those that are needed), ``grace_seconds``.
    """
    model = model_of(context, job)
    keep = field(job, "keep_last", int, KEEP_LAST_DEFAULT)
    grace = float(job.payload.get("grace_seconds", GRACE_SECONDS))

    def mark(conn: Connection) -> list[int]:
        old = retention.collectable(conn, model.id, keep_last=keep)
        for version in old:
            retention.mark_collected(conn, version.id, actor=context.actor)
        return [version.number for version in old]

    # Rows first: a version marked collected whose files are still there costs disk; the other way
    # round a reader could be sent to files that are gone.
    collected = context.transact(mark)
    paths, factors = context.transact(
        lambda conn: (retention.needed_paths(conn), retention.needed_factors(conn))
    )
    digests = {f"sha256:{path.rstrip('/').rpartition('/')[2]}" for path in paths}
    dropped = VersionStore(context.config.versions).collect(digests, grace_seconds=grace)
    freed = FactorStore(context.config.factors).collect(factors, grace_seconds=grace)
    exports = _drop_exports(context, grace)
    return {
        "collected": collected,
        "version_folders": len(dropped),
        "factors": len(freed),
        "exports": exports,
    }


def _drop_exports(context: Context, grace: float) -> int:
    """Delete what hooks exported of versions that no alias names any more; it can be made again."""
    root = context.config.home / "exports"
    if not root.is_dir():
        return 0
    # Looked at before the aliases: what is exported for a move from now on is not in the list.
    found = sorted(root.iterdir())

    def look(conn: Connection) -> set[str]:
        named = [a for m in models.list_all(conn) for a in aliases.list_aliases(conn, m.id)]
        return {versions.get(conn, a.version_id).digest.removeprefix("sha256:") for a in named}

    needed = context.transact(look)
    linked = {link.resolve() for link in context.config.aliases.glob("*/*")}
    dropped = 0
    for folder in found:
        kept = folder.name.partition("-")[0] in needed or folder.resolve() in linked
        if kept or time.time() - folder.stat().st_mtime < grace:
            continue
        # Away under one name at once: half an export must not look like a whole one.
        gone = folder.with_name(f".gone-{uuid.uuid4().hex}")
        folder.rename(gone)
        shutil.rmtree(gone)
        dropped += 1
    return dropped
