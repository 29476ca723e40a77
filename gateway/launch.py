"""Starts a supervisor as a process and follows what it says until the service is up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.rundir import RunDir
from service.errors import ServiceFailed, UserError

Event = dict[str, Any]

STOP_SECONDS = 60.0
POLL_SECONDS = 0.05


@dataclass(slots=True)
class Launched:
    """A supervisor we started.

    Attributes:
        process: The supervisor.
        up: Its `up` event: addresses, logs, children.
    """

    process: subprocess.Popen[bytes]
    up: Event


def _events(descriptor: int) -> Iterator[Event]:
    """Yields the supervisor's events until it closes its end."""
    with os.fdopen(descriptor, "rb") as stream:
        for line in stream:
            yield json.loads(line)


def launch(
    home: Path,
    arguments: list[str],
    tell: Callable[[Event], None],
    lifeline: int | None = None,
) -> Launched:
    """Starts a supervisor in `home` and waits until everything is ready.

    Args:
        home: The home folder.
        arguments: Options of `python -m gateway.supervisor`.
        tell: Receives each event of the start.
        lifeline: Reading end of a pipe; when given, the supervisor ends with the holder of the
            writing end. Without it the service outlives us.

    Raises:
        UserError: It cannot run as asked (another one runs, the port is taken).
        ServiceFailed: A part of it did not come up; the message names the part and its log.
    """
    rundir = RunDir(home)
    rundir.log_path.parent.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    argv = [sys.executable, "-m", "gateway.supervisor", "--home", str(home)]
    argv += ["--events-fd", str(writing), *arguments]
    passed = [writing]
    if lifeline is not None:
        argv += ["--lifeline-fd", str(lifeline)]
        passed.append(lifeline)
    with rundir.log_path.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own argv
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=passed,
            start_new_session=True,
            cwd=home,
        )
    os.close(writing)
    try:
        up = _follow(reading, tell)
    except BaseException:
        stop(process)
        raise
    if up is None:
        status = process.wait()
        raise ServiceFailed(
            f"the supervisor ended with status {status} before the service was up; "
            f"see {rundir.log_path}"
        )
    return Launched(process, up)


def _follow(reading: int, tell: Callable[[Event], None]) -> Event | None:
    """Passes events on until the service is up; None when the supervisor died silently."""
    for event in _events(reading):
        tell(event)
        if event["event"] == "up":
            return event
        if event["event"] == "failed":
            error = UserError if event["user_error"] else ServiceFailed
            raise error(event["message"])
    return None


def stop(process: subprocess.Popen[bytes], seconds: float = STOP_SECONDS) -> None:
    """Stops a supervisor we started and waits until it is gone; its guards kill the rest."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def stop_running(rundir: RunDir, seconds: float = STOP_SECONDS) -> bool:
    """Stops the supervisor that owns a home; returns False when none does.

    Raises:
        ServiceFailed: It is still there after `seconds`.
    """
    owner = rundir.owner()
    if owner is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(owner, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    # The lock is the truth: it is free when the supervisor has stopped its last child.
    while rundir.owner() is not None:
        if time.monotonic() > deadline:
            raise ServiceFailed(
                f"the supervisor (process {owner}) did not stop in {seconds:.0f} s; "
                f"see {rundir.log_path}"
            )
        time.sleep(POLL_SECONDS)
    return True
