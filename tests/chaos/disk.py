"""A small disk of its own, to be really full: a tmpfs where mounting is permitted."""

from __future__ import annotations

import contextlib
import errno
import subprocess
from pathlib import Path

SIZE_MIB = 192
PIECE = 1 << 20


class SmallDisk:
    """A tmpfs at a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def mount(self) -> str | None:
        """Mount it; the reason where that is not permitted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "mend", str(self.folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            return str(error)
        return None if done.returncode == 0 else done.stderr.strip() or "mount failed"

    def fill(self) -> None:
        """Take every free byte."""
        with self._ballast.open("wb", buffering=0) as out:
            try:
                while True:
                    out.write(bytes(PIECE))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        """Give them back."""
        self._ballast.unlink(missing_ok=True)

    def unmount(self) -> None:
        """Take it away with what is on it (lazily: a process may still be looking)."""
        with contextlib.suppress(OSError):
            subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)
