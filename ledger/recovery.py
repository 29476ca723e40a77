"""Putting right what a vanished worker left behind.

What is still claimed goes back to the queue, split in two halves that are claimed apart from
everything else: should one edit be the reason the worker died (out of memory, a crash in a
kernel), halving
    finds
it while all others go on. Only an edit that was alone when its worker died counts an attempt.
"""

from __future__ import annotations

from sqlalchemy import Connection

from ledger import audit
from ledger.db import text
from ledger.records import Lease
from ledger.states import EditState
from ledger.transitions import Moved, move, requeue


def recover_model(
    conn: Connection, model_id: int, *, actor: str, adopt: Lease | None = None
) -> list[Moved]:
    """Recover the open batch of a model whose lease changed hands or ran out.

    Edits applied in a version that is still to be judged stay; their batch goes to `adopt` (the new
    holder judges the version) or waits for one.
    """
    batch = conn.execute(
        text("SELECT id, size FROM batches WHERE model_id = :model AND state = 'open' FOR UPDATE"),
        {"model": model_id},
    ).one_or_none()
    if batch is None:
        return []
    batch_id = int(batch.id)
    conn.execute(
        text("UPDATE batch_edits SET worker = NULL, until = NULL WHERE batch_id = :batch"),
        {"batch": batch_id},
    )
    moved = _of_failed_versions(conn, model_id, batch_id)
    moved += split(conn, model_id, batch_id)
    judging = conn.execute(
        text("SELECT count(*) FROM edits WHERE batch_id = :batch AND state = 'applied'"),
        {"batch": batch_id},
    ).scalar_one()
    if judging:
        if adopt is not None:
            conn.execute(
                text("UPDATE batches SET fence = :fence, worker = :worker WHERE id = :batch"),
                {"fence": adopt.fence, "worker": adopt.worker, "batch": batch_id},
            )
    else:
        conn.execute(
            text(
                "UPDATE batches SET state = 'lost', finished_at = clock_timestamp() "
                "WHERE id = :batch"
            ),
            {"batch": batch_id},
        )
    audit.moved(
        conn,
        "batch.lost",
        moved,
        actor=actor,
        model_id=model_id,
        subject=f"batch:{batch_id}",
        data={"batch": batch_id, "still_judged": judging},
    )
    return moved


def split(conn: Connection, model_id: int, batch_id: int) -> list[Moved]:
    """Re-queue the claimed edits of a batch in two halves; one that was alone counts an attempt."""
    claimed = list(
        conn.execute(
            text(
                "SELECT id FROM edits WHERE batch_id = :batch AND state = 'claimed' "
                "ORDER BY priority DESC, id FOR UPDATE"
            ),
            {"batch": batch_id},
        ).scalars()
    )
    if not claimed:
        return []
    if len(claimed) == 1:
        return _alone(conn, model_id, int(claimed[0]))
    # A fresh pair of cohort numbers; batch ids are never reused, but one batch may be split twice.
    first, second = conn.execute(
        text(
            "SELECT nextval(pg_get_serial_sequence('batches', 'id')), "
            "nextval(pg_get_serial_sequence('batches', 'id'))"
        )
    ).one()
    half = (len(claimed) + 1) // 2
    return requeue(
        conn,
        model_id,
        "e.id = ANY(:ids) AND e.state = 'claimed'",
        {"ids": claimed, "first_half": claimed[:half], "first": first, "second": second},
        sets="cohort = CASE WHEN e.id = ANY(:first_half) "
        "THEN CAST(:first AS bigint) ELSE CAST(:second AS bigint) END",
    )


def _alone(conn: Connection, model_id: int, edit_id: int) -> list[Moved]:
    spent = conn.execute(
        text(
            """
            SELECT e.attempts + 1 >= m.max_attempts AS spent, e.attempts + 1 AS attempts
              FROM edits AS e JOIN models AS m ON m.id = e.model_id WHERE e.id = :edit
            """
        ),
        {"edit": edit_id},
    ).one()
    if spent.spent:
        return move(
            conn,
            EditState.FAILED,
            "e.id = :edit AND e.state = 'claimed'",
            {
                "edit": edit_id,
                "error": f"its worker died {spent.attempts} times while this edit was alone",
            },
            sets="attempts = e.attempts + 1, batch_id = NULL, error = :error",
        )
    cohort = conn.execute(
        text("SELECT nextval(pg_get_serial_sequence('batches', 'id'))")
    ).scalar_one()
    return requeue(
        conn,
        model_id,
        "e.id = :edit AND e.state = 'claimed'",
        {"edit": edit_id, "cohort": cohort},
        sets="attempts = e.attempts + 1, cohort = :cohort",
    )


def _of_failed_versions(conn: Connection, model_id: int, batch_id: int) -> list[Moved]:
    """Edits whose version failed its gate before anyone could say which of them was at fault."""
    return requeue(
        conn,
        model_id,
        """e.batch_id = :batch AND e.state = 'applied' AND NOT EXISTS (
               SELECT FROM version_edits AS c JOIN versions AS v ON v.id = c.version_id
                WHERE c.edit_id = e.id AND c.op = 'add' AND v.model_id = :model
                  AND (v.gate <> 'fail' OR v.overridden_by IS NOT NULL))""",
        {"batch": batch_id, "model": model_id},
    )
