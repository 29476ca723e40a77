"""Waiting for workers: on the ledger's notifications, with a look at the table now and then.

A notification only shortens a wait; nothing depends on it (DESIGN §2.1).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ledger import batches, edits, jobs, workers
from ledger.events import Listener
from ledger.records import Edit, Job
from ledger.states import BatchState, EditState, JobState
from service.errors import ServiceFailed, UserError
from service.session import Session

LOOK_SECONDS = 1.0
"""The longest a wait goes without looking at the table."""

MOVING = frozenset({EditState.SUBMITTED, EditState.QUEUED, EditState.CLAIMED})
"""States a worker moves an edit out of by itself; `applied` too while its batch is open."""

WORKER_GONE_SECONDS = 120.0
"""How long a wait goes on without any live worker; a killed one is back well before."""

NO_WORKER = (
    "no worker is alive, so nothing will happen until one starts: `mend up`, "
    "or `python -m workers worker` with the same DATABASE_URL"
)


def worker_alive(session: Session) -> bool:
    """Says whether any worker's heartbeat is fresh."""
    with session.transaction() as connection:
        return any(worker.alive for worker in workers.list_workers(connection))


def submit_job(
    session: Session, kind: str, payload: dict[str, Any], *, model_id: int | None, actor: str
) -> Job:
    """Submits a job for any worker.

    Raises:
        UserError: No worker is alive; the job is not submitted.
    """
    if not worker_alive(session):
        raise UserError(NO_WORKER)
    with session.transaction() as connection:
        return jobs.submit(connection, kind, payload, model_id=model_id, actor=actor)


def for_job(
    session: Session, job: Job, timeout: float, tell: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Waits until a job has ended and returns its result.

    Raises:
        UserError: It failed; the message is the worker's.
        ServiceFailed: It did not end in time. It goes on; `mend jobs` shows it.
    """
    deadline = time.monotonic() + timeout
    said = job.state
    with Listener(session.url) as listener:
        while True:
            with session.transaction() as connection:
                job = jobs.get(connection, job.id)
            if job.state is JobState.DONE:
                return dict(job.result or {})
            if job.state in (JobState.FAILED, JobState.CANCELLED):
                raise UserError(job.error or f"job {job.id} ({job.kind}) was {job.state}")
            if tell is not None and job.state is not said:
                said = job.state
                tell(f"{job.kind} (job {job.id}): {said}")
            if time.monotonic() > deadline:
                raise ServiceFailed(
                    f"job {job.id} ({job.kind}) is still {job.state} after {timeout:.0f} s; "
                    "it goes on: see `mend jobs` and `mend status`"
                )
            listener.wait(LOOK_SECONDS)


def run_job(
    session: Session,
    kind: str,
    payload: dict[str, Any],
    *,
    model_id: int | None,
    actor: str,
    timeout: float,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Submits a job and waits for its result."""
    job = submit_job(session, kind, payload, model_id=model_id, actor=actor)
    return for_job(session, job, timeout, tell)


def for_edits(
    session: Session,
    ids: Sequence[int],
    timeout: float,
    tell: Callable[[str], None] | None = None,
) -> list[Edit]:
    """Waits until no worker has anything left to do with these edits.

    Args:
        session: The ledger.
        ids: The edits.
        timeout: Seconds.
        tell: Receives a line whenever the counts change.

    Raises:
        UserError: No worker is alive.
        ServiceFailed: Time ran out.
    """
    deadline = time.monotonic() + timeout
    said = ""
    worker_seen = time.monotonic()
    with Listener(session.url) as listener:
        while True:
            with session.transaction() as connection:
                found = edits.get_many(connection, ids)
                settled = all(edit.state not in MOVING for edit in found) and not any(
                    batches.get(connection, batch).state is BatchState.OPEN
                    for batch in {
                        edit.batch_id
                        for edit in found
                        if edit.state is EditState.APPLIED and edit.batch_id is not None
                    }
                )
                alive = any(worker.alive for worker in workers.list_workers(connection))
            counts: dict[str, int] = {}
            for edit in found:
                counts[str(edit.state)] = counts.get(str(edit.state), 0) + 1
            line = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
            if tell is not None and line != said:
                said = line
                tell(line)
            if settled:
                return found
            now = time.monotonic()
            worker_seen = now if alive else worker_seen
            # A worker that was killed is back within this time where a supervisor watches it.
            if now - worker_seen > WORKER_GONE_SECONDS:
                raise UserError(NO_WORKER)
            if now > deadline:
                raise ServiceFailed(
                    f"after {timeout:.0f} s: {line}; the work goes on: see `mend edits`"
                )
            listener.wait(LOOK_SECONDS)
