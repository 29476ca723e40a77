"""Runs one command and outlives nothing: no process is left when its owner is gone.

The supervisor starts every process of the service through this guard:

    python guard.py LIFELINE_FD COMMAND ARG...

`LIFELINE_FD` is the reading end of a pipe whose writing end only the supervisor holds. When the
supervisor ends, in whatever way (`kill -9` included), the pipe reads end-of-file and the guard
stops the command: SIGTERM, then SIGKILL after a grace period. When the guard itself is killed, the
kernel kills the command (PR_SET_PDEATHSIG). Processes which the command leaves behind are adopted
by the guard (PR_SET_CHILD_SUBREAPER) and killed before it exits.

The file is run as a script with `-I -S`, so that a guard costs 10 ms and 9 MB; it imports nothing
but the standard library. On systems without prctl only the pipe is used.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

GRACE_SECONDS = float(os.environ.get("MEND_STOP_GRACE", "10"))
USAGE_EXIT = 64
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def prctl(option: int, value: int) -> None:
    """Sets one process attribute where the system has it; elsewhere does nothing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def descendants() -> list[int]:
    """Lists the processes below this one (Linux; elsewhere empty), deepest last."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            # The name field may hold spaces and parentheses; the parent id follows its last ")".
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] != "Z":
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    frontier = [os.getpid()]
    while frontier:
        children = parents.get(frontier.pop(), [])
        found.extend(children)
        frontier.extend(children)
    return found


def signal_all(processes: list[int], number: int) -> None:
    """Sends a signal to each process that still exists."""
    for process in processes:
        with contextlib.suppress(OSError):
            os.kill(process, number)


def reap(command: int) -> int | None:
    """Collects ended children; returns the exit status of `command` if it was among them."""
    status = None
    while True:
        try:
            ended, raw = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if ended == 0:
            return status
        if ended == command:
            status = os.waitstatus_to_exitcode(raw)


def sweep() -> None:
    """Kills and collects everything still below the guard."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := descendants()) and time.monotonic() < deadline:
        signal_all(left, signal.SIGKILL)
        reap(-1)
        time.sleep(0.01)


def spawn(argv: list[str], lifeline: int) -> int:
    """Forks the command with the death signal set; returns its process id."""
    guard = os.getpid()
    command = os.fork()
    if command:
        return command
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.close(lifeline)
        os.setpgid(0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # the guard died before the death signal was set
            os._exit(1)
        os.execvp(argv[0], argv)  # noqa: S606 - the argv is the supervisor's own list
    except OSError as error:
        print(f"cannot start {argv[0]}: {error.strerror}", file=sys.stderr, flush=True)  # noqa: T201 - this is the child's log
    os._exit(127)


def watch(argv: list[str], lifeline: int) -> int:
    """Runs the command until it ends, a stop signal comes, or the lifeline is cut."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    stopping: list[int] = []
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: stopping.append(received))
    command = spawn(argv, lifeline)
    watched = [wake_read, lifeline]
    kill_at: float | None = None
    while True:
        timeout = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        ready, _, _ = select.select(watched, [], [], timeout)
        if wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_read, 512)
        status = reap(command)
        if status is not None:
            sweep()
            return status if status >= 0 else 128 - status
        if lifeline in ready:  # nothing is ever written to it: readable means cut
            watched.remove(lifeline)
            stopping.append(signal.SIGTERM)
        if stopping and kill_at is None:
            # Only the command itself is told; it knows how to stop what it started.
            signal_all([command], stopping[0])
            kill_at = time.monotonic() + GRACE_SECONDS
        elif kill_at is not None and time.monotonic() >= kill_at:
            signal_all([command, *descendants()], signal.SIGKILL)
            kill_at = time.monotonic() + GRACE_SECONDS


def main() -> int:
    """Parses the two arguments and runs the command."""
    if len(sys.argv) < 3 or not sys.argv[1].isdigit():  # noqa: PLR2004 - fd and a command
        print(__doc__, file=sys.stderr)  # noqa: T201 - usage of a script
        return USAGE_EXIT
    return watch(sys.argv[2:], int(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
