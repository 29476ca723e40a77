"""The sweep: whatever was lost, missed or left behind is put right here, every few seconds.

Anyone may run it at any time, several at once too: every part skips what another holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from ledger import jobs, queue, workers
from ledger.db import text
from ledger.recovery import recover_model


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did.

    Attributes:
        due: Edits whose time had come.
        expired: Edits that ran out.
        leases: Models whose lease had run out.
        jobs: Jobs whose worker had vanished.
        workers: Workers newly marked lost.
        ready: Models with something to do: wake workers for them.
        jobs_waiting: True where a job is queued.
    """

    due: int
    expired: int
    leases: int
    jobs: int
    workers: int
    ready: tuple[int, ...]
    jobs_waiting: bool


def sweep(conn: Connection, *, actor: str = "sweep") -> Swept:
    """Do one sweep."""
    expired = queue.expire(conn)
    due = queue.release_due(conn)
    freed = expire_leases(conn, actor=actor)
    lost_jobs = jobs.recover(conn, actor=actor)
    lost_workers = workers.mark_lost(conn)
    return Swept(
        due=len(due),
        expired=len(expired),
        leases=len(freed),
        jobs=len(lost_jobs),
        workers=lost_workers,
        ready=tuple(queue.ready(conn)),
        jobs_waiting=jobs.waiting(conn),
    )


def expire_leases(conn: Connection, *, actor: str = "sweep") -> list[int]:
    """Free leases that ran out and recover their batches; a renewed lease is never touched."""
    models = [
        int(one)
        for one in conn.execute(
            text(
                """
                UPDATE leases SET worker = NULL, until = NULL, fence = fence + 1
                 WHERE model_id IN (SELECT model_id FROM leases WHERE until < clock_timestamp()
                                     ORDER BY model_id FOR UPDATE SKIP LOCKED)
                RETURNING model_id
                """
            )
        ).scalars()
    ]
    for model_id in sorted(models):
        recover_model(conn, model_id, actor=actor)
    return models
