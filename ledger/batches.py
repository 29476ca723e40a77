"""Batches: what is in them, and closing them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from ledger import audit, leases, rows
from ledger.db import text
from ledger.errors import NoSuchBatch, WrongState
from ledger.records import Batch, Edit, Lease
from ledger.states import EditState


def get(conn: Connection, batch_id: int) -> Batch:
    """One batch.

    Raises:
        NoSuchBatch: None of this id.
    """
    row = conn.execute(
        text(f"SELECT {rows.BATCH_COLUMNS} FROM batches AS b WHERE b.id = :batch"),  # noqa: S608 - our words
        {"batch": batch_id},
    ).one_or_none()
    if row is None:
        raise NoSuchBatch(f"no batch {batch_id}")
    return rows.batch(row)


def current(conn: Connection, model_id: int) -> Batch | None:
    """The open batch of a model, or None."""
    row = conn.execute(
        text(
            f"SELECT {rows.BATCH_COLUMNS} FROM batches AS b "  # noqa: S608 - our words
            "WHERE b.model_id = :model AND b.state = 'open'"
        ),
        {"model": model_id},
    ).one_or_none()
    return None if row is None else rows.batch(row)


def list_batches(conn: Connection, model_id: int | None = None, *, limit: int = 100) -> list[Batch]:
    """Batches, newest first."""
    found = conn.execute(
        text(
            f"SELECT {rows.BATCH_COLUMNS} FROM batches AS b "  # noqa: S608 - our words
            "WHERE CAST(:model AS bigint) IS NULL OR b.model_id = :model "
            "ORDER BY b.id DESC LIMIT :limit"
        ),
        {"model": model_id, "limit": limit},
    )
    return [rows.batch(row) for row in found]


def edits_of(
    conn: Connection, batch_id: int, *, states: Sequence[EditState | str] | None = None
) -> list[Edit]:
    """Every edit that was claimed in a batch, highest priority first, whatever became of it."""
    found = conn.execute(
        text(
            f"""
            SELECT {rows.EDIT_COLUMNS} FROM batch_edits AS c JOIN edits AS e ON e.id = c.edit_id
             WHERE c.batch_id = :batch
               AND (CAST(:states AS edit_state[]) IS NULL
                    OR (e.state = ANY(CAST(:states AS edit_state[])) AND e.batch_id = c.batch_id))
             ORDER BY e.priority DESC, e.id
            """  # noqa: S608 - our words
        ),
        {
            "batch": batch_id,
            "states": [EditState(one).value for one in states] if states is not None else None,
        },
    )
    return [rows.edit(row) for row in found]


def problems(conn: Connection, batch_id: int) -> dict[int, str]:
    """Claimed edits of a batch whose factor could not be computed, with the error."""
    found = conn.execute(
        text(
            """
            SELECT c.edit_id, c.error FROM batch_edits AS c JOIN edits AS e ON e.id = c.edit_id
             WHERE c.batch_id = :batch AND c.error IS NOT NULL AND c.factor_digest IS NULL
               AND e.batch_id = c.batch_id AND e.state = 'claimed' ORDER BY c.edit_id
            """
        ),
        {"batch": batch_id},
    )
    return {int(row.edit_id): str(row.error) for row in found}


def tell(conn: Connection, batch_id: int, stage: str, done: int, of: int | None) -> None:
    """Note how far an open batch is; a stage that was begun keeps its beginning.

    Nothing depends on it: it is for whoever waits. A batch that somebody else changes just now is
    left as it is, so that telling never waits for a lock.
    """
    conn.execute(
        text(
            """
            UPDATE batches SET stage_done = :done, stage_of = :of,
                   stage_began_at = CASE WHEN stage = :stage AND stage_done <= :done
                                         THEN stage_began_at ELSE clock_timestamp() END,
                   stage = :stage
             WHERE id = (SELECT id FROM batches WHERE id = :batch AND state = 'open'
                            FOR UPDATE SKIP LOCKED)
            """
        ),
        {"batch": batch_id, "stage": stage, "done": done, "of": of},
    )


def finish(conn: Connection, lease: Lease, batch_id: int, *, actor: str) -> None:
    """Close a batch in which nothing is claimed any more; closing it again does nothing.

    Raises:
        StaleFence: The lease was lost.
        WrongState: Edits are still claimed in it.
    """
    leases.check(conn, lease)
    closed = conn.execute(
        text(
            """
            UPDATE batches SET state = 'done', finished_at = clock_timestamp()
             WHERE id = :batch AND state = 'open' AND NOT EXISTS (
                   SELECT FROM edits WHERE batch_id = :batch AND state = 'claimed')
            RETURNING model_id
            """
        ),
        {"batch": batch_id},
    ).scalar_one_or_none()
    if closed is None:
        get(conn, batch_id)
        claimed = conn.execute(
            text("SELECT count(*) FROM edits WHERE batch_id = :batch AND state = 'claimed'"),
            {"batch": batch_id},
        ).scalar_one()
        if claimed:
            raise WrongState(
                f"batch {batch_id} still has {claimed} claimed edits: "
                "commit, retry or return them first"
            )
        return
    audit.append(
        conn,
        "batch.done",
        actor=actor,
        model_id=int(closed),
        subject=f"batch:{batch_id}",
        data={"batch": batch_id},
    )
