"""Named fault points, so that tests can break a worker exactly where it hurts.

``MEND_FAULT="point:action"`` arms one point for the first time it is reached in a process;
several are separated by commas. ``MEND_FAULT_ONCE=/path`` names a file made when a fault fires:
while it exists no fault fires again, so that the worker which takes over survives the same point.

``MEND_FAULT_FILE=/path`` arms a point while workers run: the first process that reaches the point
named in the file removes the file and acts. Only one process can remove it.

Actions: ``kill`` (SIGKILL to this process), ``killparent`` (SIGKILL to the worker parent, then to
this process), ``stop`` (SIGSTOP to this process; somebody else must send SIGCONT), ``raise``
(RuntimeError), ``enospc`` (the OSError of a full disk), ``db`` (drop this process's database
connections by raising the driver's own error).
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

POINTS = (
    "after-lease",
    "after-claim",
    "mid-factor",
    "after-factor",
    "before-rename",
    "after-rename",
    "before-commit",
    "after-commit",
    "before-gate",
    "after-gate",
    "mid-bisect",
    "job-running",
)
ACTIONS = ("kill", "killparent", "stop", "raise", "enospc", "db")


class FaultSpecInvalid(ValueError):
    """``MEND_FAULT`` names an unknown point or action."""


def parse(spec: str) -> dict[str, str]:
    """Read a ``point:action[,point:action]`` text.

    Raises:
        FaultSpecInvalid: Unknown point or action, with the ones that exist.
    """
    armed: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in spec.split(","))):
        point, _, action = part.partition(":")
        if point not in POINTS or action not in ACTIONS:
            raise FaultSpecInvalid(
                f"MEND_FAULT={part!r}: expected point:action with a point of {', '.join(POINTS)} "
                f"and an action of {', '.join(ACTIONS)}"
            )
        armed[point] = action
    return armed


def _first_to_fire(point: str) -> bool:
    """Whether this process may fire: the marker file did not exist and now does."""
    marker = os.environ.get("MEND_FAULT_ONCE")
    if not marker:
        return True
    try:
        handle = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    os.write(handle, f"{point} {os.getpid()}\n".encode())
    os.close(handle)
    return True


def _armed_by_file(name: str) -> str | None:
    """The action of a point armed by file, for the one process that gets to remove the file."""
    path = os.environ.get("MEND_FAULT_FILE")
    if not path:
        return None
    try:
        action = parse(Path(path).read_text()).get(name)
        if action is not None:
            Path(path).unlink()
    except OSError:
        return None
    return action


def point(name: str) -> None:
    """Pass a named point; does nothing unless the environment arms it.

    Raises:
        RuntimeError: Action ``raise``.
        OSError: Action ``enospc``.
        psycopg.OperationalError: Action ``db``.
    """
    action = _armed_by_file(name)
    spec = os.environ.get("MEND_FAULT")
    if action is None and spec:
        action = parse(spec).get(name)
        if action is not None and not _first_to_fire(name):
            action = None
    if action is not None:
        _act(name, action)


def _act(name: str, action: str) -> None:
    sys.stderr.write(f"mend fault: {name}:{action} in process {os.getpid()}\n")
    sys.stderr.flush()
    if action == "killparent":
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if action == "enospc":
        raise OSError(errno.ENOSPC, f"No space left on device (fault point {name})")
    if action == "raise":
        raise RuntimeError(f"fault point {name}")
    if action == "db":
        from psycopg import OperationalError  # noqa: PLC0415 - only tests pay for the import

        raise OperationalError(f"server closed the connection unexpectedly (fault point {name})")


def marker_text(path: Path) -> str:
    """What fired, as written in the marker file, or an empty text."""
    return path.read_text().strip() if path.exists() else ""


def install() -> None:
    """Put ``before-rename`` and ``after-rename`` around the renames that publish a version.

    Stores rename a finished folder into place; these points must sit exactly there, inside code
    that knows nothing of faults. Does nothing unless one of them is armed.
    """
    armed = parse(os.environ.get("MEND_FAULT", ""))
    by_file = "MEND_FAULT_FILE" in os.environ
    if not by_file and not {"before-rename", "after-rename"} & set(armed):
        return
    real = {"rename": os.rename, "replace": os.replace}

    def around(name: str) -> Callable[..., None]:
        def renamed(src: Any, dst: Any, **more: Any) -> None:
            published = "versions" in Path(os.fsdecode(dst)).parts
            if published:
                point("before-rename")
            real[name](src, dst, **more)
            if published:
                point("after-rename")

        return renamed

    for name in real:
        setattr(os, name, around(name))
