"""Factors on disk, named by digest."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mend_core.digests import PREFIX, hex_of
from mend_core.errors import StoreCorrupt, StoreMissing
from mend_core.factors.rows import GridRows, Int16Rows
from mend_core.files import fsync_folder, safetensors_bytes, store_error, write_atomic

_SUFFIX = ".safetensors"


class FactorStore:
    """A folder of factors, ``<root>/<2 hex>/<62 hex>.safetensors``. Safe for many processes."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def path(self, digest: str) -> Path:
        """Where a factor lies or would lie.

        Raises:
            StoreMissing: Not a digest at all.
        """
        try:
            name = hex_of(digest)
        except ValueError as error:
            raise StoreMissing(f"{digest!r} is no factor's digest") from error
        return self.root / name[:2] / f"{name[2:]}{_SUFFIX}"

    def put(self, factor: GridRows) -> str:
        """Writes a factor unless it is there; durable when this returns. Gives its digest.

        Raises:
            StoreFull: No room left; nothing half-written remains.
        """
        return self.put_many([factor])[0]

    def put_many(self, factors: Iterable[GridRows]) -> list[str]:
        """Writes several with one pass of folder syncs.

        Raises:
            StoreFull: No room left; those already written stay, whole.
        """
        digests: list[str] = []
        touched: set[Path] = set()
        for factor in factors:
            digest = factor.digest
            digests.append(digest)
            path = self.path(digest)
            if path.is_file():
                # A collector that runs now must see that somebody wants it.
                with contextlib.suppress(FileNotFoundError):
                    os.utime(path)
                    touched.add(path.parent)  # another process may not have synced it yet
                    continue
            header = json.dumps({**factor.header(), "digest": digest}, sort_keys=True)
            write_atomic(path, safetensors_bytes(factor.tensors(), header), sync_parent=False)
            touched.add(path.parent)
        for folder in sorted(touched):
            try:
                fsync_folder(folder)
            except OSError as error:
                raise store_error(folder, error) from error
        return digests

    def get(self, digest: str) -> GridRows:
        """Reads a factor and checks it against its digest.

        Raises:
            StoreMissing: Not there.
            StoreCorrupt: Not what its digest says; the message names the file.
        """
        path = self.path(digest)
        if not path.is_file():
            raise StoreMissing(
                f"factor {digest} is missing ({path}); restore the file, or extract the edit again"
            )
        try:
            with safe_open(path, framework="pt") as handle:
                header = json.loads((handle.metadata() or {})["mend"])
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - no mapping
            tensors.pop("empty", None)
            names = sorted(name.removesuffix("|u") for name in tensors if name.endswith("|u"))
            factor = GridRows(
                edit_id=str(header["edit_id"]),
                grid_digest=str(header["grid"]),
                rows={
                    name: Int16Rows(tensors[f"{name}|u"], tensors[f"{name}|v"]) for name in names
                },
                clipped=int(header["clipped"]),
            )
        except FileNotFoundError as error:
            raise StoreMissing(f"factor {digest} is missing ({path})") from error
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise StoreCorrupt(
                f"{path} cannot be read ({error}): it was truncated or altered; extract the edit "
                "again"
            ) from error
        if factor.digest != digest:
            raise StoreCorrupt(
                f"{path} was altered: its content has digest {factor.digest}; extract the edit "
                "again"
            )
        return factor

    def get_many(self, digests: Iterable[str]) -> Iterator[GridRows]:
        """`get`, one after the other."""
        return (self.get(digest) for digest in digests)

    def discard(self, digest: str) -> None:
        """Removes a damaged factor's file, so that `put_many` writes it anew."""
        path = self.path(digest)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise store_error(path, error) from error

    def has(self, digest: str) -> bool:
        """Whether it is there (not whether it is sound: see `get`)."""
        return self.path(digest).is_file()

    def digests(self) -> Iterator[str]:
        """Every factor there is."""
        for path in sorted(self.root.glob(f"??/*{_SUFFIX}")):
            if not path.name.startswith("."):
                yield f"{PREFIX}{path.parent.name}{path.name.removesuffix(_SUFFIX)}"

    def collect(self, keep: Collection[str], *, grace_seconds: float = 3600.0) -> list[str]:
        """Removes factors not in `keep` and older than the grace time, and stale temporary files.

        Returns:
            Digests removed.
        """
        wanted = frozenset(keep)
        before = time.time() - grace_seconds
        removed: list[str] = []
        for digest in self.digests():
            path = self.path(digest)
            with contextlib.suppress(FileNotFoundError):
                if digest not in wanted and path.stat().st_mtime <= before:
                    path.unlink()
                    removed.append(digest)
        for path in self.root.glob("??/.*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime <= before:
                    path.unlink()
        return removed
