"""The one way edits change state: lock, update, report what moved from where to where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection

from ledger.db import text
from ledger.states import EditState

_SUBMISSION_LOCK = 1296387652  # also in migrations/sql: shared by single submissions

Moved = tuple[int, str, str]
"""(edit id, state before, state after)."""


def lock_submissions(conn: Connection, model_id: int) -> None:
    """Keep submissions of a model out until commit, so that no newer edit of a fact slips in.

    Taken by everything that puts edits back into the waiting states, and by bulk submission.
    """
    conn.execute(
        text("SELECT pg_advisory_xact_lock(:lock, CAST(:model AS integer))"),
        {"lock": _SUBMISSION_LOCK, "model": model_id},
    )


def move(
    conn: Connection,
    to: EditState,
    where: str,
    params: Mapping[str, Any],
    *,
    sets: str = "",
    skip_locked: bool = False,
) -> list[Moved]:
    """Move every edit matching `where` (over alias `e`) to one state.

    * `where`: SQL condition with bind names of `params`.
    * `sets`: Further assignments, e.g. "batch_id = NULL".
    * `skip_locked`: Leave edits alone that another transaction holds.

    Returns:
        What moved. Row locks are taken in id order, so that two movers cannot deadlock.
    """
    more = f", {sets}" if sets else ""
    lock = "FOR UPDATE SKIP LOCKED" if skip_locked else "FOR UPDATE"
    rows = conn.execute(
        text(
            f"""
            WITH old AS (
                SELECT e.id, e.state AS before FROM edits AS e WHERE {where} ORDER BY e.id {lock}
            )
            UPDATE edits AS e SET state = '{to.value}', updated_at = clock_timestamp(){more}
              FROM old WHERE e.id = old.id
            RETURNING e.id, old.before
            """  # noqa: S608 - conditions and assignments are literals of this package
        ),
        params,
    )
    return [(int(row.id), str(row.before), to.value) for row in rows]


def requeue(
    conn: Connection,
    model_id: int,
    where: str,
    params: Mapping[str, Any],
    *,
    sets: str = "",
) -> list[Moved]:
    """Put edits back into the queue; one whose fact has a newer waiting edit is superseded instead.

    Of several of one fact among those moved, the newest is queued.
    """
    lock_submissions(conn, model_id)
    cleared = "batch_id = NULL" + (f", {sets}" if sets else "")
    newer = """EXISTS (
        SELECT FROM edits AS n WHERE n.model_id = e.model_id AND n.fact_key = e.fact_key
           AND n.id <> e.id AND n.state IN ('submitted', 'queued'))"""
    superseded = move(
        conn,
        EditState.SUPERSEDED,
        f"({where}) AND e.state IN ('claimed', 'applied') AND {newer}",
        params,
        sets=f"""{cleared}, superseded_by = (
            SELECT max(n.id) FROM edits AS n WHERE n.model_id = e.model_id
               AND n.fact_key = e.fact_key AND n.state IN ('submitted', 'queued'))""",  # noqa: S608 - literals of this function
    )
    queued = move(conn, EditState.QUEUED, f"({where}) AND NOT {newer}", params, sets=cleared)
    return superseded + queued


def ids_of(moved: Iterable[Moved]) -> list[int]:
    """Just the ids."""
    return [one for one, _, _ in moved]
