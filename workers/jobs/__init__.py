"""Jobs: what a person asks a worker to do beside editing; one handler a kind.

A handler takes the working process and the job and returns a JSON-ready result. What it raises
becomes the job's error: the sentence alone for errors of our own trees, which are written for the
person who asked, and type and sentence for anything else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from ledger import jobs as job_rows
from ledger.errors import DatabaseDown, LedgerError, StaleFence
from ledger.records import Job
from mend_core.errors import MendError
from workers import faults
from workers.context import Context, Stopping

log = logging.getLogger("mend.jobs")

Handler = Callable[[Context, Job], Mapping[str, Any]]

HANDLERS: Mapping[str, str] = {
    "ask": "workers.jobs.ask:ask",
    "preview": "workers.jobs.preview:preview",
    "verify": "workers.jobs.verify:verify",
    "export": "workers.jobs.export:export",
    "materialise": "workers.jobs.export:materialise",
    "revert": "workers.jobs.revert:revert",
    "rebase": "workers.jobs.rebase:rebase",
    "diff": "workers.jobs.diff:diff",
    "report": "workers.jobs.report:report",
    "gate": "workers.jobs.gate:gate",
    "policy": "workers.jobs.policy:policy",
    "suite": "workers.jobs.suite:suite",
    "collect": "workers.jobs.collect:collect",
    "doctor": "workers.jobs.doctor:doctor",
    "hook": "workers.hooks:deliver",
    "editor": "workers.jobs.register:editor",
    "register": "workers.jobs.register:register",
}


class JobInvalid(Exception):
    """The payload of a job is not usable; the message says which field and what was expected."""


class Busy(Exception):
    """The job needs something another worker holds now; it is tried again later."""


def handler_of(kind: str) -> Handler:
    """The handler of a kind of job.

    Raises:
        JobInvalid: No such kind.
    """
    where = HANDLERS.get(kind)
    if where is None:
        raise JobInvalid(f"no job of kind {kind!r}; there are {', '.join(sorted(HANDLERS))}")
    module, _, name = where.partition(":")
    found: Handler = getattr(import_module(module), name)
    return found


def run_one(context: Context, kinds: Sequence[str] | None = None) -> bool:
    """Claim and run one job (of `kinds`); False where none is waiting."""
    asked_at = time.monotonic()
    job = context.transact(
        lambda conn: job_rows.claim(
            conn, context.worker, kinds=kinds, ttl=context.config.lease_seconds
        )
    )
    if job is None:
        return False

    def renew(conn: Any) -> None:
        job_rows.renew(conn, job, ttl=context.config.lease_seconds)

    log.info("job %d: %s", job.id, job.kind)
    error, retry = "", False
    result: Mapping[str, Any] | None = None
    with context.keep(renew, asked_at):
        faults.point("job-running")
        try:
            result = handler_of(job.kind)(context, job)
        except DatabaseDown:
            raise  # its lease runs out and another worker takes the job
        except (Busy, Stopping) as later:
            error, retry = str(later) or "the worker is stopping", True
        except (MendError, LedgerError, JobInvalid) as refused:
            error = str(refused)
        except Exception as bug:
            log.exception("job %d (%s) failed", job.id, job.kind)
            error = f"{type(bug).__name__}: {bug}"
    try:
        if result is not None:
            done = result
            context.transact(lambda conn: job_rows.finish(conn, job, done))
        else:
            context.transact(lambda conn: job_rows.fail(conn, job, error, retry=retry))
    except StaleFence:
        log.info("job %d was taken over by another worker", job.id)
    context.check()
    return True
