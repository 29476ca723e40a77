"""Child processes under a guard: start, watch, restart with backoff, stop.

A child's process id here is its guard's; the guard (see `gateway.guard`) makes sure that neither
the command nor anything it started survives the supervisor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BACKOFF_FIRST_SECONDS = 0.2
BACKOFF_LAST_SECONDS = 10.0
STEADY_SECONDS = 30.0
"""A child that lived this long is healthy again: its backoff starts over."""

GUARD = Path(__file__).with_name("guard.py")


@dataclass(frozen=True, slots=True)
class Spec:
    """What a child is.

    Attributes:
        name: Its name in status, logs and metrics.
        argv: The command.
        ready: Asked until it returns True; must look at a real signal, never at the process.
        env: Variables added to the supervisor's environment.
        ready_seconds: How long the child may take until it is ready.
        stop_seconds: Time between SIGTERM and SIGKILL.
    """

    name: str
    argv: Sequence[str]
    ready: Callable[[], bool]
    env: Mapping[str, str] = field(default_factory=dict)
    ready_seconds: float = 120.0
    stop_seconds: float = 10.0


class Child:
    """One supervised process.

    Args:
        spec: What to run.
        lifeline: Reading end of the supervisor's lifeline pipe.
        log: File that receives the command's output, appended.
    """

    def __init__(self, spec: Spec, lifeline: int, log: Path) -> None:
        self.spec = spec
        self.log = log
        self.restarts = 0
        self.ready = False
        self._lifeline = lifeline
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._backoff = BACKOFF_FIRST_SECONDS
        self._next_start = 0.0
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The guard's process id while it runs."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Starts the command under a new guard, in a session of its own."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            # A session of its own keeps the terminal's Ctrl-C for the supervisor alone, which
            # then stops its children in order.
            self._process = subprocess.Popen(  # noqa: S603 - our own argv
                [sys.executable, "-I", "-S", str(GUARD), str(self._lifeline), *self.spec.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    **self.spec.env,
                    "MEND_STOP_GRACE": str(self.spec.stop_seconds),
                },
                pass_fds=(self._lifeline,),
                start_new_session=True,
            )
        self._started = time.monotonic()
        self.ready = False

    def ended(self) -> int | None:
        """Returns the exit status once the child has ended, else None."""
        if self._process is None:
            return None
        status = self._process.poll()
        if status is not None:
            self._process = None
            now = time.monotonic()
            if now - self._started >= STEADY_SECONDS:
                self._backoff = BACKOFF_FIRST_SECONDS
            self._next_start = now + self._backoff
            self._backoff = min(BACKOFF_LAST_SECONDS, self._backoff * 2)
            self.ready = False
        return status

    def due(self) -> bool:
        """Says whether an ended child should be started again now."""
        return self._process is None and time.monotonic() >= self._next_start

    def restart(self) -> None:
        """Starts an ended child again and counts it."""
        self.restarts += 1
        self.start()

    def ask_ready(self) -> bool:
        """Asks the child's readiness signal, and remembers a yes."""
        if not self.ready and self._process is not None:
            self.ready = self.spec.ready()
        return self.ready

    def overdue(self) -> bool:
        """Says whether the child is running but was not ready in its time."""
        return (
            self._process is not None
            and not self.ready
            and time.monotonic() - self._started > self.spec.ready_seconds
        )

    def stop(self) -> None:
        """Asks the guard to stop the command and waits until nothing of it is left."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        # The guard kills after `stop_seconds` itself; the margin is for a busy machine.
        try:
            process.wait(self.spec.stop_seconds * 2 + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def last_words(self) -> str:
        """Returns the last line this run of the command wrote, for an error message."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - 4096))
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
            said = [line for line in lines if line]
            if said:
                return said[-1]
        return "it wrote nothing"
