"""Versions: base + a set of edits, on disk as a manifest and accumulators."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mend_core.digests import PREFIX, hex_of, json_digest, tensor_digest
from mend_core.errors import StoreCorrupt, StoreMissing
from mend_core.factors.accumulators import Accumulators, read_file
from mend_core.factors.compose import Composition
from mend_core.factors.grid import Grid
from mend_core.factors.store import FactorStore
from mend_core.files import temporary, write_folder_atomic, write_safetensors

_MANIFEST = "manifest.json"
_SUMS = "accumulators.safetensors"


def version_digest(
    base_digest: str,
    editor_digest: str,
    composition: Composition | Mapping[str, Any],
    factor_digests: Iterable[str],
) -> str:
    """A version's name: a function of base, editor, composition settings and the *set* of factors.

    Order and repetition don't matter.
    """
    settings = composition.to_dict() if isinstance(composition, Composition) else dict(composition)
    return json_digest(
        {
            "kind": "mend.version.1",
            "base": base_digest,
            "editor": editor_digest,
            "composition": settings,
            "factors": sorted(set(factor_digests)),
        }
    )


@dataclass(frozen=True, slots=True, eq=False)
class VersionFiles:
    """What is kept of a version.

    Attributes:
        base_digest: The base.
        editor_digest: The editor.
        composition: Canonical settings (`Composition.to_dict`).
        factors: Digests of the live edits' factors, sorted.
        parent: Digest of the parent version, or None.
        accumulators: Exact sums over the set, or None where rows suffice (few rows).
        weights_digest: Digest of the materialised matrices, on the platform that made them.
        platform: See `platform_tag`.
        notes: Free JSON.
    """

    base_digest: str
    editor_digest: str
    composition: Mapping[str, Any]
    factors: tuple[str, ...]
    parent: str | None = None
    accumulators: Accumulators | None = None
    weights_digest: str | None = None
    platform: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The version's name."""
        return version_digest(self.base_digest, self.editor_digest, self.composition, self.factors)


class VersionStore:
    """A folder of versions: ``<root>/<hex>/manifest.json`` and ``accumulators.safetensors``.

    Safe for many processes: a version's folder appears whole or not at all.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def folder(self, digest: str) -> Path:
        """Where a version lies or would lie.

        Raises:
            StoreMissing: Not a digest at all.
        """
        try:
            return self.root / hex_of(digest)
        except ValueError as error:
            raise StoreMissing(f"{digest!r} is no version's digest") from error

    def write(self, version: VersionFiles) -> str:
        """Writes a version unless it is there; durable when this returns. Gives its digest.

        Raises:
            StoreFull: No room left; nothing half-written remains.
        """
        digest = version.digest
        folder = self.folder(digest)
        if folder.is_dir():
            with contextlib.suppress(FileNotFoundError):
                os.utime(folder)  # a collector that runs now must see that somebody wants it
                return digest
        sums = version.accumulators
        packed = sums.packed() if sums is not None else None
        body: dict[str, Any] = {
            "kind": "mend.version.1",
            "digest": digest,
            "base": version.base_digest,
            "editor": version.editor_digest,
            "composition": dict(version.composition),
            "factors": sorted(set(version.factors)),
            "parent": version.parent,
            "accumulators": packed[2] if packed else None,
            "weights": version.weights_digest,
            "platform": version.platform,
            "notes": dict(version.notes),
        }
        text = json.dumps({**body, "manifest": json_digest(body)}, indent=1, sort_keys=True)

        def fill(work: Path) -> None:
            if packed is not None:
                write_safetensors(work / _SUMS, packed[0], packed[1])
            (work / _MANIFEST).write_text(text + "\n")

        write_folder_atomic(folder, fill)
        return digest

    def load(self, digest: str, grid: Grid | None = None) -> VersionFiles:
        """Reads a version and checks it; accumulators only when `grid` is given.

        Raises:
            StoreMissing: Not there.
            StoreCorrupt: A file is not what its digest says; the message names it.
        """
        body = self._manifest(digest)
        sums = None
        path = self.folder(digest) / _SUMS
        if grid is not None and body["accumulators"] is not None and path.is_file():
            sums = Accumulators.load(path, grid)
        return VersionFiles(
            base_digest=body["base"],
            editor_digest=body["editor"],
            composition=body["composition"],
            factors=tuple(body["factors"]),
            parent=body["parent"],
            accumulators=sums,
            weights_digest=body["weights"],
            platform=body["platform"],
            notes=body["notes"],
        )

    def _manifest(self, digest: str) -> dict[str, Any]:
        folder = self.folder(digest)
        path = folder / _MANIFEST
        if not path.is_file():
            raise StoreMissing(
                f"version {digest} is missing ({path}); it was collected, or the store was moved"
            )
        try:
            body: dict[str, Any] = json.loads(path.read_bytes())
            claimed = body.pop("manifest")
            found = json_digest(body)
            named = version_digest(
                body["base"], body["editor"], body["composition"], body["factors"]
            )
        except FileNotFoundError as error:
            raise StoreMissing(f"version {digest} is missing ({path})") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreCorrupt(f"{path} cannot be read ({error}): it was altered") from error
        if claimed != found or named != digest or body["digest"] != digest:
            raise StoreCorrupt(f"{path} was altered: its content is not what its digest says")
        return body

    def has(self, digest: str) -> bool:
        """Whether it is there."""
        return (self.folder(digest) / _MANIFEST).is_file()

    def digests(self) -> Iterator[str]:
        """Every version there is."""
        for path in sorted(self.root.glob(f"*/{_MANIFEST}")):
            if not path.parent.name.startswith("."):
                yield f"{PREFIX}{path.parent.name}"

    def verify(
        self, digest: str, *, factors: FactorStore | None = None, grid: Grid | None = None
    ) -> None:
        """Reads every file of the version and recomputes its digests.

        Args:
            digest: The version.
            factors: Read and check every factor of its set too.
            grid: With `factors`: sum the factors anew and compare with the accumulators.

        Raises:
            StoreMissing: A file is not there.
            StoreCorrupt: A file was altered; the message names it.
        """
        body = self._manifest(digest)
        path = self.folder(digest) / _SUMS
        known = body["accumulators"]
        header: dict[str, Any] = {}
        if known is not None and path.is_file():
            tensors, header = read_file(path)
            if tensor_digest(tensors, header) != known:
                raise StoreCorrupt(f"{path} was replaced: the manifest names other accumulators")
        if factors is None:
            return
        sums = Accumulators(grid, with_gram=bool(header["gram"])) if grid and header else None
        for name in body["factors"]:
            factor = factors.get(name)
            if sums is not None:
                sums.add([factor])
        if sums is not None and sums.digest != known:
            raise StoreCorrupt(f"{path} is not the sum of the version's factors")

    def collect(self, keep: Collection[str], *, grace_seconds: float = 3600.0) -> list[str]:
        """Removes versions not in `keep` and older than the grace time, and stale leftovers.

        Returns:
            Digests removed.
        """
        wanted = frozenset(keep)
        before = time.time() - grace_seconds
        removed: list[str] = []
        for digest in self.digests():
            folder = self.folder(digest)
            with contextlib.suppress(FileNotFoundError):
                if digest in wanted or folder.stat().st_mtime > before:
                    continue
                # Renamed first: a reader never meets half a version.
                doomed = temporary(folder)
                folder.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)
                removed.append(digest)
        for leftover in self.root.glob(".*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if leftover.stat().st_mtime <= before:
                    shutil.rmtree(leftover, ignore_errors=True)
        return removed

    def drop_accumulators(self, digest: str) -> bool:
        """Frees a version's accumulators (factors rebuild them). True if there were any."""
        path = self.folder(digest) / _SUMS
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        return True
