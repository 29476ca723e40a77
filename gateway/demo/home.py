"""A home folder for one demo run, removed afterwards; leftovers of killed runs are swept."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gateway.rundir import RunDir

STALE_SECONDS = 60.0
"""A run folder younger than this may belong to a demo that has not taken its lock yet."""


def sweep(folder: Path) -> None:
    """Removes run folders whose supervisor is gone."""
    for left in folder.glob("run-*"):
        with contextlib.suppress(OSError):
            young = time.time() - left.stat().st_mtime < STALE_SECONDS
            if not young and RunDir(left).owner() is None:
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def run_home(root: Path, *, keep: bool) -> Iterator[Path]:
    """Makes a fresh home below `root/demo`; removes it at the end unless told to keep it."""
    folder = root / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    home = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
    try:
        yield home
    finally:
        if not keep:
            shutil.rmtree(home, ignore_errors=True)
