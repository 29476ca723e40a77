"""Waiting for workers: on the ledger's notifications, with a look at the table now and then.

A notification only shortens a wait; nothing depends on it (DESIGN §2.1).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection

from ledger import batches, chunks, edits, jobs, models, queue, workers
from ledger.events import Listener
from ledger.records import Batch, Edit, Job, Model
from ledger.states import EditState, JobState
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


class Hindrance(StrEnum):
    """What keeps edits waiting, beside work."""

    NO_WORKER = "no_worker"
    PAUSED = "paused"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far some edits are.

    Attributes:
        counts: Edits by state.
        batch: The batch that is in work, of the first of them that is; None where none is.
        stage: What its worker is at: factoring, composing, probing or bisecting.
        done: Units of the stage that are done.
        of: Units there are; None where nobody knows.
        seconds_left: Of the stage, by its pace so far; None where it cannot be told.
        ahead: Edits of the model that are claimed before the first of these.
        hindrances: What keeps them waiting, with the reason where there is one.
        settled: No worker has anything left to do with them.
    """

    counts: Mapping[str, int]
    batch: int | None = None
    stage: str | None = None
    done: int = 0
    of: int | None = None
    seconds_left: float | None = None
    ahead: int = 0
    hindrances: Mapping[Hindrance, str] = field(default_factory=dict)
    settled: bool = False


def hindrances_of(connection: Connection, model: Model) -> dict[Hindrance, str]:
    """What keeps a model's edits waiting, each with its reason where there is one."""
    found: dict[Hindrance, str] = {}
    if not any(worker.alive for worker in workers.list_workers(connection)):
        found[Hindrance.NO_WORKER] = ""
    if model.problem is not None:
        found[Hindrance.PROBLEM] = model.problem
    if model.paused:
        found[Hindrance.PAUSED] = model.name
    return found


def progress(connection: Connection, found: Sequence[Edit]) -> Progress:
    """Says how far edits of one model are."""
    counts = Counter(str(edit.state) for edit in found)
    ids = {
        edit.batch_id
        for edit in found
        if edit.batch_id is not None and edit.state in (EditState.CLAIMED, EditState.APPLIED)
    }
    opened = [
        b for b in (batches.get(connection, one) for one in sorted(ids)) if b.finished_at is None
    ]
    settled = not opened and not any(edit.state in MOVING for edit in found)
    if settled or not found:
        return Progress(counts, settled=True)
    hindrances = hindrances_of(connection, models.get(connection, found[0].model_id))
    if opened:
        hindrances.pop(Hindrance.PAUSED, None)  # an open batch goes on to its end
    else:
        queued = [edit for edit in found if edit.state is EditState.QUEUED]
        ahead = queue.ahead(connection, queued[0]) if queued else 0
        return Progress(counts, ahead=ahead, hindrances=hindrances)
    return _of_batch(connection, opened[0], counts, hindrances)


def _of_batch(
    connection: Connection,
    batch: Batch,
    counts: Mapping[str, int],
    hindrances: Mapping[Hindrance, str],
) -> Progress:
    done, of = batch.stage_done or 0, batch.stage_of
    if batch.stage == "factoring":
        # Several workers may factor one batch: what counts is what is recorded.
        factors = chunks.progress(connection, batch.id)
        done, of = factors.total - factors.pending, factors.total
    left = None
    if batch.stage_began_at is not None and of is not None and done:
        spent = (datetime.now(UTC) - batch.stage_began_at).total_seconds()
        left = max(0.0, spent / done * (of - done))
    return Progress(counts, batch.id, batch.stage, done, of, left, hindrances=hindrances)


def for_edits(
    session: Session,
    ids: Sequence[int],
    timeout: float,
    tell: Callable[[Progress], None] | None = None,
) -> list[Edit]:
    """Waits until no worker has anything left to do with these edits.

    Args:
        session: The ledger.
        ids: The edits.
        timeout: Seconds.
        tell: Receives the progress about once a second.

    Raises:
        UserError: No worker is alive, or the model is paused.
        ServiceFailed: Time ran out.
    """
    deadline = time.monotonic() + timeout
    worker_seen = time.monotonic()
    with Listener(session.url) as listener:
        while True:
            with session.transaction() as connection:
                found = edits.get_many(connection, ids)
                now = progress(connection, found)
            if tell is not None:
                tell(now)
            if now.settled:
                return found
            if Hindrance.PAUSED in now.hindrances:
                raise UserError(
                    f"model {now.hindrances[Hindrance.PAUSED]} is paused, so nothing of it is "
                    "claimed until a person lets it go on; the edits keep their place"
                )
            moment = time.monotonic()
            if Hindrance.NO_WORKER not in now.hindrances:
                worker_seen = moment
            # A worker that was killed is back within this time where a supervisor watches it.
            if moment - worker_seen > WORKER_GONE_SECONDS:
                raise UserError(NO_WORKER)
            if moment > deadline:
                states = ", ".join(f"{n} {state}" for state, n in sorted(now.counts.items()))
                problem = now.hindrances.get(Hindrance.PROBLEM)
                why = f" (the model cannot be worked on: {problem})" if problem else ""
                raise ServiceFailed(
                    f"after {timeout:.0f} s: {states}{why}; the work goes on: see `mend edits`"
                )
            listener.wait(LOOK_SECONDS)
