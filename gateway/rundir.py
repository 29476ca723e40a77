"""The run folder of a home: who runs the service there, and where it listens."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ledger.home import Home
from service.errors import UserError


def make_home(folder: Path | None) -> Path:
    """Resolves the home folder and makes it.

    Args:
        folder: What the user asked for; None takes MEND_HOME or the default.

    Raises:
        UserError: The folder cannot be made or written.
    """
    root = (folder or Home.from_env().root).expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the home folder {root}: {error.strerror}; set MEND_HOME to a folder "
            "you can write"
        ) from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to the home folder {root}; set MEND_HOME to one you can")
    return root


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """What a running supervisor says about itself.

    Attributes:
        state: "starting" or "ready".
        children: Name of each child → process id of its guard.
        restarts: Name of each child → how often it was started again.
    """

    pid: int
    state: str
    database_url: str
    broker_url: str
    metrics_url: str
    logs: str
    children: dict[str, int] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns the plain form that is written to `service.json`."""
        return asdict(self)


class RunDir:
    """Files of one home's supervisor.

    Args:
        home: The home folder.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "run"
        self.lock_path = self.folder / "supervisor.lock"
        self.info_path = self.folder / "service.json"
        self.log_path = home / "logs" / "supervisor.log"

    def write(self, info: ServiceInfo) -> None:
        """Replaces the service file in one step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.info_path.with_suffix(".new")
        fresh.write_text(json.dumps(info.to_dict()))
        fresh.replace(self.info_path)

    def read(self) -> ServiceInfo | None:
        """Returns what the running supervisor wrote, or None when none runs."""
        if self.owner() is None:
            return None
        try:
            return ServiceInfo(**json.loads(self.info_path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def owner(self) -> int | None:
        """Returns the process id of the live supervisor; a stale file gives None.

        The lock tells, not the file: the system drops a lock with its process.
        """
        try:
            with self.lock_path.open("r+") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    text = lock.read().strip()
                    return int(text) if text.isdigit() else -1
        except OSError:
            return None
        return None

    def forget(self) -> None:
        """Removes the service file."""
        with contextlib.suppress(OSError):
            self.info_path.unlink()

    def database_url(self) -> str | None:
        """Returns the embedded server's address as its runner wrote it, or None so far."""
        return Home(self.home).read_endpoint()
