"""Jobs: what a person asks a worker to do beside editing (ask, export, verify, revert, report, …).

A job is a row with a result. It is claimed and kept like a batch: SKIP LOCKED, a lease renewed by
a heart, a token that refuses a worker that lost it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb
from sqlalchemy import Connection

from ledger import audit, rows, workers
from ledger.db import text
from ledger.errors import NoSuchJob, StaleFence, WrongState
from ledger.records import Job
from ledger.states import JobState

TTL_SECONDS = 60.0
MAX_ATTEMPTS = 3


def submit(
    conn: Connection,
    kind: str,
    payload: Mapping[str, Any] | None = None,
    *,
    model_id: int | None = None,
    actor: str,
    max_attempts: int = MAX_ATTEMPTS,
) -> Job:
    """Ask for a job; wait on it with `get` or NOTIFY (`job.done`, `job.failed`)."""
    job_id = int(
        conn.execute(
            text(
                """
                INSERT INTO jobs (model_id, kind, payload, requested_by, max_attempts)
                VALUES (:model, :kind, :payload, :actor, :attempts) RETURNING id
                """
            ),
            {
                "model": model_id,
                "kind": kind,
                "payload": Jsonb(dict(payload or {})),
                "actor": actor,
                "attempts": max_attempts,
            },
        ).scalar_one()
    )
    _record(conn, "job.submitted", job_id, model_id, actor, {"kind": kind})
    return get(conn, job_id)


def claim(
    conn: Connection,
    worker: UUID,
    *,
    kinds: Sequence[str] | None = None,
    ttl: float = TTL_SECONDS,
) -> Job | None:
    """Take the oldest queued job (of `kinds`); None where there is none."""
    row = conn.execute(
        text(
            f"""
            UPDATE jobs AS j SET state = 'running', worker = :worker, token = j.token + 1,
                   attempts = j.attempts + 1,
                   until = clock_timestamp() + make_interval(secs => :ttl)
             WHERE j.id = (SELECT id FROM jobs WHERE state = 'queued'
                              AND (CAST(:kinds AS text[]) IS NULL OR kind = ANY(:kinds))
                            ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
            RETURNING {rows.JOB_COLUMNS}
            """  # noqa: S608 - our words
        ),
        {"worker": worker, "ttl": ttl, "kinds": list(kinds) if kinds is not None else None},
    ).one_or_none()
    return None if row is None else rows.job(row)


def renew(conn: Connection, job: Job, *, ttl: float = TTL_SECONDS) -> None:
    """Keep a running job.

    Raises:
        StaleFence: It was taken from this worker.
    """
    kept = conn.execute(
        text(
            """
            UPDATE jobs SET until = clock_timestamp() + make_interval(secs => :ttl)
             WHERE id = :job AND token = :token AND state = 'running'
            """
        ),
        {"ttl": ttl, "job": job.id, "token": job.token},
    ).rowcount
    if not kept:
        raise _lost(job)


def finish(conn: Connection, job: Job, result: Mapping[str, Any]) -> Job:
    """Store a job's result.

    Raises:
        StaleFence: It was taken from this worker; nothing was changed.
    """
    done = conn.execute(
        text(
            """
            UPDATE jobs SET state = 'done', result = :result, error = NULL, until = NULL,
                   finished_at = clock_timestamp()
             WHERE id = :job AND token = :token AND state = 'running'
            """
        ),
        {"result": Jsonb(dict(result)), "job": job.id, "token": job.token},
    ).rowcount
    if not done:
        raise _lost(job)
    _record(conn, "job.done", job.id, job.model_id, _worker(conn, job), {"kind": job.kind})
    return get(conn, job.id)


def fail(conn: Connection, job: Job, error: str, *, retry: bool = False) -> Job:
    """End a job with an error, or queue it again while attempts are left and `retry` is set.

    Raises:
        StaleFence: It was taken from this worker; nothing was changed.
    """
    row = conn.execute(
        text(
            """
            UPDATE jobs SET until = NULL, error = :error, worker = NULL,
                   state = CASE WHEN :retry AND attempts < max_attempts
                                THEN 'queued'::job_state ELSE 'failed'::job_state END,
                   finished_at = CASE WHEN :retry AND attempts < max_attempts
                                      THEN NULL ELSE clock_timestamp() END
             WHERE id = :job AND token = :token AND state = 'running'
            RETURNING state
            """
        ),
        {"error": error, "retry": retry, "job": job.id, "token": job.token},
    ).one_or_none()
    if row is None:
        raise _lost(job)
    kind = "job.failed" if row.state == "failed" else "job.retried"
    data = {"kind": job.kind, "error": error}
    _record(conn, kind, job.id, job.model_id, _worker(conn, job), data)
    return get(conn, job.id)


def cancel(conn: Connection, job_id: int, *, actor: str) -> Job:
    """Withdraw a job that is not running yet.

    Raises:
        WrongState: It runs or has ended.
    """
    job = get(conn, job_id)
    done = conn.execute(
        text(
            "UPDATE jobs SET state = 'cancelled', finished_at = clock_timestamp() "
            "WHERE id = :job AND state = 'queued'"
        ),
        {"job": job_id},
    ).rowcount
    if not done:
        raise WrongState(f"job {job_id} is {job.state}: only a queued job can be cancelled")
    _record(conn, "job.cancelled", job_id, job.model_id, actor, {"kind": job.kind})
    return get(conn, job_id)


def get(conn: Connection, job_id: int) -> Job:
    """One job.

    Raises:
        NoSuchJob: None of this id.
    """
    row = conn.execute(
        text(f"SELECT {rows.JOB_COLUMNS} FROM jobs AS j WHERE j.id = :job"),  # noqa: S608 - our words
        {"job": job_id},
    ).one_or_none()
    if row is None:
        raise NoSuchJob(f"no job {job_id}")
    return rows.job(row)


def list_jobs(
    conn: Connection,
    *,
    model_id: int | None = None,
    states: Sequence[JobState | str] | None = None,
    limit: int = 100,
) -> list[Job]:
    """Jobs, newest first."""
    found = conn.execute(
        text(
            f"""
            SELECT {rows.JOB_COLUMNS} FROM jobs AS j
             WHERE (CAST(:model AS bigint) IS NULL OR j.model_id = :model)
               AND (CAST(:states AS job_state[]) IS NULL
                    OR j.state = ANY(CAST(:states AS job_state[])))
             ORDER BY j.id DESC LIMIT :limit
            """  # noqa: S608 - our words
        ),
        {
            "model": model_id,
            "states": [JobState(one).value for one in states] if states is not None else None,
            "limit": limit,
        },
    )
    return [rows.job(row) for row in found]


def waiting(conn: Connection, kinds: Sequence[str] | None = None) -> bool:
    """Whether a job (of `kinds`) is queued."""
    return bool(
        conn.execute(
            text(
                """
                SELECT EXISTS (SELECT FROM jobs WHERE state = 'queued'
                    AND (CAST(:kinds AS text[]) IS NULL OR kind = ANY(:kinds)))
                """
            ),
            {"kinds": list(kinds) if kinds is not None else None},
        ).scalar_one()
    )


def recover(conn: Connection, *, actor: str = "sweep") -> list[int]:
    """Queue jobs whose worker vanished again; failed where attempts are used up."""
    found = conn.execute(
        text(
            """
            WITH lost AS (
                SELECT id FROM jobs WHERE state = 'running' AND until < clock_timestamp()
                 ORDER BY id FOR UPDATE SKIP LOCKED
            )
            UPDATE jobs AS j SET until = NULL, worker = NULL, token = j.token + 1,
                   error = 'its worker vanished ' || j.attempts || ' times',
                   state = CASE WHEN j.attempts < j.max_attempts
                                THEN 'queued'::job_state ELSE 'failed'::job_state END,
                   finished_at = CASE WHEN j.attempts < j.max_attempts
                                      THEN NULL ELSE clock_timestamp() END
              FROM lost WHERE j.id = lost.id RETURNING j.id, j.model_id, j.kind, j.state
            """
        )
    ).all()
    for row in found:
        kind = "job.failed" if row.state == "failed" else "job.retried"
        data = {"kind": row.kind, "error": "its worker vanished"}
        _record(conn, kind, row.id, row.model_id, actor, data)
    return [int(row.id) for row in found]


def _record(  # noqa: PLR0917 - one event, its parts in order
    conn: Connection,
    kind: str,
    job_id: int,
    model_id: int | None,
    actor: str,
    data: Mapping[str, Any],
) -> None:
    audit.append(
        conn, kind, actor=actor, model_id=model_id, subject=f"job:{job_id}", data={"job": data}
    )


def _worker(conn: Connection, job: Job) -> str:
    return "worker" if job.worker is None else workers.actor(conn, job.worker)


def _lost(job: Job) -> StaleFence:
    return StaleFence(f"job {job.id} was taken from this worker: nothing was changed")
