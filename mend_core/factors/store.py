"""Factors on disk, named by digest."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from mend_core.factors.rows import GridRows


class FactorStore:
    """A folder of factors, ``<root>/<2 hex>/<62 hex>.safetensors``. Safe for many processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, factor: GridRows) -> str:
        """Writes a factor unless it is there; durable when this returns. Gives its digest.

        Raises:
            StoreFull: No room left; nothing half-written remains.
        """
        raise NotImplementedError

    def put_many(self, factors: Iterable[GridRows]) -> list[str]:
        """Writes several with one pass of directory syncs."""
        raise NotImplementedError

    def get(self, digest: str) -> GridRows:
        """Reads a factor and checks it against its digest.

        Raises:
            StoreMissing: Not there.
            StoreCorrupt: Not what its digest says; the message names the file.
        """
        raise NotImplementedError

    def has(self, digest: str) -> bool:
        """Whether it is there (not whether it is sound: see `get`)."""
        raise NotImplementedError

    def collect(self, keep: Collection[str], *, grace_seconds: float = 3600.0) -> list[str]:
        """Removes factors not in `keep` and older than the grace time, and stale temporary files.

        Returns:
            Digests removed.
        """
        raise NotImplementedError
