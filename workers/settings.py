"""What a worker process is told from outside, read from the environment once.

The environment is the one channel that reaches a spawned child unchanged, so the command line of
`python -m workers` writes it and everything else reads it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ledger.home import Home

SWEEP_SECONDS = 5.0
"""Seconds between two sweeps: the most a lost wake-up can cost."""

LEASE_SECONDS = 30.0
"""Seconds a lease, a chunk or a running job outlives its worker's last heartbeat."""

BATCH_EDITS = 512
"""Most edits claimed into one batch."""

CHUNK_EDITS = 16
"""Edits whose factors are computed in one step; also how long a stop may take to be noticed."""


class SettingsInvalid(ValueError):
    """The environment of a worker is not usable; the message names the variable."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where a worker finds the world.

    Attributes:
        database_url: SQLAlchemy URL of the ledger.
        broker_url: Celery broker URL; "pgmq://" is the ledger's own database.
        home: Folder of stores, caches and exports.
        name: Name of this worker, for people; identity is a fresh UUID per process.
        device: Torch device.
        threads: Torch threads, or 0 for torch's own choice.
        keep_answers: Keep the base's probe answers in the user's cache folder, for other processes
            and homes too.
    """

    database_url: str
    broker_url: str
    home: Path
    name: str
    device: str = "cpu"
    threads: int = 0
    keep_answers: bool = False
    sweep_seconds: float = SWEEP_SECONDS
    lease_seconds: float = LEASE_SECONDS
    batch_edits: int = BATCH_EDITS
    chunk_edits: int = CHUNK_EDITS

    @property
    def factors(self) -> Path:
        """Folder of the factor store."""
        return self.home / "store" / "factors"

    @property
    def versions(self) -> Path:
        """Folder of the version store."""
        return self.home / "store" / "versions"

    @property
    def editors(self) -> Path:
        """Folder of the registered editors, named by digest."""
        return self.home / "store" / "editors"

    @property
    def suites(self) -> Path:
        """Folder of the probe suites, named by digest."""
        return self.home / "store" / "suites"

    @property
    def aliases(self) -> Path:
        """Folder whose links follow the aliases, for servers that watch a path."""
        return self.home / "aliases"


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError as error:
        raise SettingsInvalid(f"{name}={text!r} is not a number; unset it or correct it") from error
    if value <= 0:
        raise SettingsInvalid(f"{name}={text!r} must be above 0")
    return value


def from_environment() -> Settings:
    """Read the settings.

    Raises:
        SettingsInvalid: A number is not one.
        DatabaseDown: Neither DATABASE_URL nor a running embedded server.
    """
    env = os.environ
    home = Home.from_env()
    return Settings(
        database_url=home.resolve_database_url(),
        broker_url=home.broker_url or "pgmq://",
        home=home.root,
        name=env.get("MEND_WORKER_NAME") or f"worker@{socket.gethostname()}",
        device=env.get("MEND_DEVICE") or "cpu",
        threads=int(_number(env, "MEND_THREADS", 1)) if env.get("MEND_THREADS") else 0,
        keep_answers=True,
        sweep_seconds=_number(env, "MEND_SWEEP_SECONDS", SWEEP_SECONDS),
        lease_seconds=_number(env, "MEND_LEASE_SECONDS", LEASE_SECONDS),
        batch_edits=int(_number(env, "MEND_BATCH_EDITS", BATCH_EDITS)),
        chunk_edits=int(_number(env, "MEND_CHUNK_EDITS", CHUNK_EDITS)),
    )
