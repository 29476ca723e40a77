"""Factors whose files are missing or damaged: named, forgotten, and computed again.

A factor is a function of base, editor and edit, so what was lost can be made again; on the platform
that made it, to the same digest. One that comes out otherwise (another platform, a stronger step
after a failed gate) cannot stand in for it in a committed set: then only a backup helps, and the
message says so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from sqlalchemy import Connection

from ledger import chunks as chunk_rows
from ledger import edits as edit_rows
from ledger import versions as version_rows
from ledger.records import Batch
from mend_core.errors import StoreCorrupt, StoreMissing
from mend_core.factors import GridRows
from workers.context import Context
from workers.factoring import compute
from workers.runtime import WarmModel, core_edit

log = logging.getLogger("mend.restore")

TIMES = 3
"""How often one batch may be begun again after factors were restored: a disk may be dying."""


@dataclass(frozen=True, slots=True)
class Needed:
    """Factors a batch needs: digest → edit."""

    committed: dict[str, int]
    claimed: dict[str, int]


def restore(context: Context, warm: WarmModel, batch: Batch) -> bool:
    """Make every damaged factor that a batch needs anew.

    Those of claimed edits are forgotten, and computed with the batch's other factors; those of
    committed sets are computed here.

    Returns:
        Whether there were any; where not, something else is wrong with the store.

    Raises:
        StoreCorrupt: A committed factor came out with another digest.
        StoreFull: No room.
    """
    needed = context.transact(lambda conn: _needed(conn, batch))
    broken = {d: e for d, e in needed.claimed.items() if _broken(warm, d)}
    lost = {d: e for d, e in needed.committed.items() if _broken(warm, d)}
    for digest, edit_id in (broken | lost).items():
        log.warning("factor %s of edit %d is damaged or gone: computing it again", digest, edit_id)
        warm.factors.discard(digest)
    forgotten = [digest for digest in broken if digest not in lost]
    if forgotten:
        context.transact(lambda conn: chunk_rows.forget(conn, forgotten))
    if lost:
        _again(context, warm, lost)
    return bool(broken or lost)


def _needed(conn: Connection, batch: Batch) -> Needed:
    line = version_rows.parent_of_next(conn, batch.model_id)
    members = list(version_rows.live_set(conn, line.id))
    for version in version_rows.pending(conn, batch.model_id):
        members += version_rows.changes(conn, version.id)[0]
    return Needed(
        {one.factor_digest: one.edit_id for one in members},
        chunk_rows.made(conn, batch.id),
    )


def _broken(warm: WarmModel, digest: str) -> bool:
    try:
        warm.factors.get(digest)
    except (StoreMissing, StoreCorrupt):
        return True
    return False


def _again(context: Context, warm: WarmModel, lost: dict[str, int]) -> None:
    edits = context.transact(lambda conn: edit_rows.get_many(conn, list(lost.values())))
    made = [
        one for one in compute(warm, [core_edit(e) for e in edits]) if isinstance(one, GridRows)
    ]
    warm.factors.put_many([one for one in made if one.digest in lost])
    gone = {d: e for d, e in lost.items() if d not in {one.digest for one in made}}
    if gone:
        named = ", ".join(f"{digest} of edit {edit_id}" for digest, edit_id in gone.items())
        raise StoreCorrupt(
            f"factors in committed versions are gone and come out otherwise when computed again: "
            f"{named}; bring their files back from a backup, or revert these edits"
        )
