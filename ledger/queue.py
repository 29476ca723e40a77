"""The queue: claims, and what becomes of a claimed edit.

Claims are `FOR UPDATE SKIP LOCKED` along the index `edits_to_claim`, so that their cost does not
grow with the queue. Everything a worker does to its batch is guarded by its lease.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from psycopg.types.json import Jsonb
from sqlalchemy import Connection

from ledger import audit, leases, rows, transitions, workers
from ledger.db import text
from ledger.errors import BatchChanged, NoSuchBatch, WrongState
from ledger.records import Batch, Claim, Edit, Lease
from ledger.states import BatchState, EditState
from ledger.transitions import move, requeue

# The rows are locked by the pick before it; none can have moved since.
_CLAIM = f"""
    WITH batch AS (
        INSERT INTO batches (model_id, fence, worker, size, cohort)
        VALUES (:model, :fence, :worker, cardinality(CAST(:ids AS bigint[])),
                (SELECT cohort FROM edits WHERE id = (CAST(:ids AS bigint[]))[1]))
        RETURNING *
    ), claimed AS (
        UPDATE edits AS e SET state = 'claimed', updated_at = clock_timestamp(),
               batch_id = batch.id
          FROM batch WHERE e.id = ANY(:ids) AND e.state = 'queued'
        RETURNING {rows.EDIT_COLUMNS}
    ), members AS (
        INSERT INTO batch_edits (batch_id, edit_id, factor_digest)
        SELECT e.batch_id, e.id, f.digest
          FROM claimed AS e LEFT JOIN factors AS f ON f.edit_id = e.id
                                  AND f.base_digest = :base AND f.editor_digest = :editor
    )
    SELECT {rows.EDIT_COLUMNS}, {rows.BATCH_COLUMNS}
      FROM claimed AS e CROSS JOIN batch AS b ORDER BY e.priority DESC, e.id
"""  # noqa: S608 - our words

BATCH_LIMIT = 100
BACKOFF_FIRST_SECONDS = 5.0
BACKOFF_LIMIT_SECONDS = 900.0


def claim(conn: Connection, lease: Lease, *, limit: int = BATCH_LIMIT) -> Claim | None:
    """Claim the next due edits of the lease's model, highest priority first, oldest first.

    Edits suspected of killing their worker are claimed apart from the others. None where nothing is
    due or the model is paused. Factors known for the model's base and editor are filled in.

    Raises:
        StaleFence: The lease was lost.
        WrongState: The model's last batch is still open (judge its version first).
    """
    model = conn.execute(
        text(
            """
            SELECT m.paused, m.base_digest, d.digest AS editor_digest,
                   (SELECT b.id FROM batches AS b
                     WHERE b.model_id = m.id AND b.state = 'open') AS open
              FROM leases AS l JOIN models AS m ON m.id = l.model_id
              JOIN editors AS d ON d.id = m.editor_id
             WHERE l.model_id = :model AND l.worker = :worker AND l.fence = :fence
               AND l.until > clock_timestamp()
               FOR UPDATE OF l
            """
        ),
        leases.params(lease),
    ).one_or_none()
    if model is None:
        raise leases.lost(lease)
    if model.paused:
        return None
    if model.open is not None:
        raise WrongState(
            f"batch {model.open} of model {lease.model_id} is still open: judge its version and "
            "finish it before claiming another"
        )
    release_due(conn, lease.model_id)
    ids = _pick(conn, lease.model_id, limit)
    if not ids:
        return None
    found = conn.execute(
        text(_CLAIM),
        leases.params(lease)
        | {"ids": ids, "base": model.base_digest, "editor": model.editor_digest},
    ).all()
    claimed = [rows.edit(row) for row in found]
    batch = rows.batch(found[0][rows.EDIT_WIDTH :])
    audit.moved(
        conn,
        "batch.claimed",
        [(one.id, EditState.QUEUED.value, EditState.CLAIMED.value) for one in claimed],
        actor=workers.actor(conn, lease.worker),
        model_id=lease.model_id,
        subject=f"batch:{batch.id}",
        data={"batch": batch.id, "fence": lease.fence},
    )
    return Claim(batch, tuple(claimed))


def _pick(conn: Connection, model_id: int, limit: int) -> list[int]:
    """Lock the next edits: those of one cohort, or those of none."""
    first = conn.execute(
        text(
            """
            SELECT id, cohort FROM edits
             WHERE model_id = :model AND state = 'queued'
               AND (expires_at IS NULL OR expires_at > clock_timestamp())
             ORDER BY priority DESC, id LIMIT 1 FOR UPDATE SKIP LOCKED
            """
        ),
        {"model": model_id},
    ).one_or_none()
    if first is None:
        return []
    same = "cohort IS NULL" if first.cohort is None else "cohort = :cohort"
    return list(
        conn.execute(
            text(
                f"""
                SELECT id FROM edits
                 WHERE model_id = :model AND state = 'queued' AND {same}
                   AND (expires_at IS NULL OR expires_at > clock_timestamp())
                 ORDER BY priority DESC, id LIMIT :limit FOR UPDATE SKIP LOCKED
                """  # noqa: S608 - one of two conditions of ours
            ),
            {"model": model_id, "limit": limit}
            | ({} if first.cohort is None else {"cohort": first.cohort}),
        ).scalars()
    )


def return_claim(
    conn: Connection, lease: Lease, batch_id: int, *, actor: str, reason: str
) -> list[int]:
    """Graceful stop: what is still claimed goes back to the queue, nothing is counted.

    Raises:
        StaleFence: The lease was lost (then the batch was recovered by someone else).
    """
    leases.check(conn, lease)
    batch = _batch(conn, batch_id, lease)
    moved = requeue(
        conn, batch.model_id, "e.batch_id = :batch AND e.state = 'claimed'", {"batch": batch_id}
    )
    conn.execute(
        text(
            "UPDATE batches SET state = CASE WHEN EXISTS (SELECT FROM edits "
            "WHERE batch_id = :batch AND state = 'applied') "
            "THEN 'done'::batch_state ELSE 'returned'::batch_state END, "
            "finished_at = clock_timestamp() WHERE id = :batch"
        ),
        {"batch": batch_id},
    )
    audit.append(
        conn,
        "batch.returned",
        actor=actor,
        model_id=batch.model_id,
        subject=f"batch:{batch_id}",
        data={"batch": batch_id, "reason": reason, "moves": audit.as_moves(moved)},
        edit_ids=transitions.ids_of(moved),
    )
    return transitions.ids_of(moved)


def retry(
    conn: Connection, lease: Lease, batch_id: int, edit_id: int, *, error: str, actor: str
) -> EditState:
    """Try one edit again later, with back-off; failed where its attempts are used up.

    Raises:
        StaleFence: The lease was lost.
        BatchChanged: The edit is not claimed in this batch any more.
    """
    leases.check(conn, lease)
    batch = _batch(conn, batch_id, lease)
    row = conn.execute(
        text(
            """
            SELECT e.attempts + 1 AS attempts, m.max_attempts FROM edits AS e
              JOIN models AS m ON m.id = e.model_id
             WHERE e.id = :edit AND e.batch_id = :batch AND e.state = 'claimed' FOR UPDATE OF e
            """
        ),
        {"edit": edit_id, "batch": batch_id},
    ).one_or_none()
    if row is None:
        raise BatchChanged(f"edit {edit_id} is not claimed in batch {batch_id} any more")
    params = {"edit": edit_id, "error": error, "batch": batch_id}
    if row.attempts >= row.max_attempts:
        moved = move(
            conn,
            EditState.FAILED,
            "e.id = :edit AND e.batch_id = :batch",
            params,
            sets="attempts = e.attempts + 1, error = :error, batch_id = NULL",
        )
    else:
        transitions.lock_submissions(conn, batch.model_id)
        newer = conn.execute(
            text(
                """
                SELECT max(n.id) FROM edits AS n JOIN edits AS e ON e.id = :edit
                 WHERE n.model_id = e.model_id AND n.fact_key = e.fact_key
                   AND n.state IN ('submitted', 'queued')
                """
            ),
            {"edit": edit_id},
        ).scalar_one()
        if newer is not None:
            moved = move(
                conn,
                EditState.SUPERSEDED,
                "e.id = :edit",
                params | {"newer": newer},
                sets="superseded_by = :newer, batch_id = NULL, error = :error",
            )
        else:
            delay = min(BACKOFF_FIRST_SECONDS * 2 ** (row.attempts - 1), BACKOFF_LIMIT_SECONDS)
            moved = move(
                conn,
                EditState.SUBMITTED,
                "e.id = :edit",
                params | {"delay": delay},
                sets="attempts = e.attempts + 1, error = :error, batch_id = NULL, "
                # Half to one and a half times the delay: retries of one batch spread out.
                "not_before = clock_timestamp() + make_interval(secs => :delay * (0.5 + random()))",
            )
    audit.moved(
        conn,
        "edit.retried",
        moved,
        actor=actor,
        model_id=batch.model_id,
        data={"attempts": row.attempts, "error": error, "batch": batch_id},
    )
    return EditState(moved[0][2])


def quarantine(
    conn: Connection,
    lease: Lease,
    batch_id: int,
    evidence: Mapping[int, Mapping[str, Any]],
    *,
    actor: str,
) -> list[int]:
    """Set edits of the batch aside with the evidence against each.

    Returns:
        The ids that moved (one that was cancelled meanwhile does not).

    Raises:
        StaleFence: The lease was lost.
    """
    return _end(conn, lease, batch_id, EditState.QUARANTINED, dict(evidence), actor)


def fail(
    conn: Connection, lease: Lease, batch_id: int, problems: Mapping[int, str], *, actor: str
) -> list[int]:
    """Send edits of the batch to the dead letters at once: trying again cannot help.

    Raises:
        StaleFence: The lease was lost.
    """
    return _end(conn, lease, batch_id, EditState.FAILED, dict(problems), actor)


def _end(  # noqa: PLR0917 - private; two callers above
    conn: Connection,
    lease: Lease,
    batch_id: int,
    to: EditState,
    why: Mapping[int, Mapping[str, Any] | str],
    actor: str,
) -> list[int]:
    leases.check(conn, lease)
    batch = _batch(conn, batch_id, lease)
    moved = end_edits(conn, batch_id, to, why)
    audit.moved(
        conn,
        f"edit.{to.value}",
        moved,
        actor=actor,
        model_id=batch.model_id,
        data={
            "batch": batch_id,
            "why": {str(one): _plain(why[one]) for one in transitions.ids_of(moved)},
        },
    )
    return transitions.ids_of(moved)


def end_edits(
    conn: Connection,
    batch_id: int,
    to: EditState,
    why: Mapping[int, Mapping[str, Any] | str],
) -> list[transitions.Moved]:
    """Move claimed or applied edits of a batch to quarantined or failed, each with its reason."""
    notes = {
        str(one): {"error": reason, "evidence": None}
        if isinstance(reason, str)
        else {"error": str(reason.get("reason", "broke the gate")), "evidence": dict(reason)}
        for one, reason in why.items()
    }
    return move(
        conn,
        to,
        "e.id = ANY(:ids) AND e.batch_id = :batch AND (e.state = 'claimed' "
        "OR (e.state = 'applied' AND CAST(:to AS text) = 'quarantined'))",
        {
            "ids": [int(one) for one in why],
            "batch": batch_id,
            "to": to.value,
            "notes": Jsonb(notes),
        },
        sets="error = CAST(:notes AS jsonb) -> e.id::text ->> 'error', batch_id = NULL, "
        "evidence = nullif(CAST(:notes AS jsonb) -> e.id::text -> 'evidence', 'null'::jsonb)",
    )


def release_due(conn: Connection, model_id: int | None = None) -> list[int]:
    """Queue every submitted edit whose time has come."""
    moved = move(
        conn,
        EditState.QUEUED,
        "e.state = 'submitted' AND e.not_before <= clock_timestamp()"
        " AND (CAST(:model AS bigint) IS NULL OR e.model_id = :model)",
        {"model": model_id},
        skip_locked=True,
    )
    _per_model(conn, "edit.due", moved)
    return transitions.ids_of(moved)


def expire(conn: Connection, model_id: int | None = None) -> list[int]:
    """Cancel waiting edits whose `expires_at` is past."""
    moved = move(
        conn,
        EditState.CANCELLED,
        "e.expires_at <= clock_timestamp() AND e.expires_at IS NOT NULL"
        " AND e.state IN ('submitted', 'awaiting_approval', 'queued')"
        " AND (CAST(:model AS bigint) IS NULL OR e.model_id = :model)",
        {"model": model_id},
        sets="error = 'expired before it was applied'",
        skip_locked=True,
    )
    _per_model(conn, "edit.expired", moved)
    return transitions.ids_of(moved)


def ready(conn: Connection) -> list[int]:
    """Models with something to do: due edits and no pause, or a version still to be judged."""
    return list(
        conn.execute(
            text(
                """
                SELECT m.id FROM models AS m
                 WHERE (NOT m.paused AND (
                           EXISTS (SELECT FROM edits AS e WHERE e.model_id = m.id
                                AND e.state = 'queued' AND (e.expires_at IS NULL
                                     OR e.expires_at > clock_timestamp()))
                        OR EXISTS (SELECT FROM edits AS e WHERE e.model_id = m.id
                                AND e.state = 'submitted'
                                AND e.not_before <= clock_timestamp())))
                    OR EXISTS (SELECT FROM batches AS b
                                WHERE b.model_id = m.id AND b.state = 'open')
                 ORDER BY m.id
                """
            )
        ).scalars()
    )


def ahead(conn: Connection, edit: Edit) -> int:
    """Queued edits of the same model that are claimed before this one."""
    return int(
        conn.execute(
            text(
                """
                SELECT count(*) FROM edits
                 WHERE model_id = :model AND state = 'queued'
                   AND (priority > :priority OR (priority = :priority AND id < :edit))
                """
            ),
            {"model": edit.model_id, "priority": edit.priority, "edit": edit.id},
        ).scalar_one()
    )


def _per_model(conn: Connection, kind: str, moved: list[transitions.Moved]) -> None:
    if not moved:
        return
    owners = {
        int(row.id): int(row.model_id)
        for row in conn.execute(
            text("SELECT id, model_id FROM edits WHERE id = ANY(:ids)"),
            {"ids": transitions.ids_of(moved)},
        )
    }
    for model_id in sorted(set(owners.values())):
        audit.moved(
            conn,
            kind,
            [one for one in moved if owners[one[0]] == model_id],
            actor="clock",
            model_id=model_id,
        )


def _batch(conn: Connection, batch_id: int, lease: Lease | None = None) -> Batch:
    row = conn.execute(
        text(f"SELECT {rows.BATCH_COLUMNS} FROM batches AS b WHERE b.id = :batch"),  # noqa: S608 - our words
        {"batch": batch_id},
    ).one_or_none()
    if row is None:
        raise NoSuchBatch(f"no batch {batch_id}")
    batch = rows.batch(row)
    if lease is not None and (
        batch.model_id != lease.model_id or batch.state is not BatchState.OPEN
    ):
        raise WrongState(f"batch {batch_id} is {batch.state}: it is not this lease's open batch")
    return batch


def _plain(reason: Mapping[str, Any] | str) -> Any:
    """Evidence for the trail: its digest, as evidence holds answers (texts) that may be erased."""
    if isinstance(reason, str):
        return reason
    words = json.dumps(dict(reason), sort_keys=True, default=str).encode()
    return {"digest": hashlib.sha256(words).hexdigest(), "reason": reason.get("reason")}
