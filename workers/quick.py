"""Quick jobs: what somebody waits for at the keyboard, served at safe points of long work.

A batch may take minutes; a question takes a second. So whatever a working process does, it looks
for quick jobs at its safe points (`mend_core.safepoints`) and runs them there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ledger import jobs as job_rows
from workers.context import Context
from workers.jobs import run_one

QUICK_KINDS = ("ask", "preview")
"""Kinds that may interrupt: their work is bounded by what one person reads."""

LOOK_SECONDS = 0.5
"""Shortest time between two looks for quick jobs: a look is one query."""

JOBS_AT_ONCE = 8
"""Quick jobs served at one safe point; then the work around it goes on for a while."""


@dataclass(eq=False)
class QuickJobs:
    """Serves a working process' quick jobs; see `mend_core.safepoints.Interrupter`."""

    context: Context
    _looked: float = field(default=-float("inf"), init=False)

    def due(self) -> bool:
        """Whether one waits; the ledger is asked every `LOOK_SECONDS` at most."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        return self.context.transact(lambda conn: job_rows.waiting(conn, QUICK_KINDS))

    def run(self) -> None:
        """Serves those that wait; what fails is told in the job and ends nothing else.

        Raises:
            Stopping: A graceful stop was asked for meanwhile.
            DatabaseDown: Postgres does not answer.
        """
        served = 0
        while served < JOBS_AT_ONCE and run_one(self.context, QUICK_KINDS):
            served += 1
