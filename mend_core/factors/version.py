"""Versions: base + a set of edits, on disk as a manifest and accumulators."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mend_core.digests import json_digest
from mend_core.factors.accumulators import Accumulators
from mend_core.factors.compose import Composition
from mend_core.factors.grid import Grid


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
    """A folder of versions, ``<root>/<hex>/`` with ``manifest.json`` and ``accumulators.safetensors``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, version: VersionFiles) -> str:
        """Writes a version unless it is there; durable when this returns. Gives its digest.

        Raises:
            StoreFull: No room left; nothing half-written remains.
        """
        raise NotImplementedError

    def load(self, digest: str, grid: Grid | None = None) -> VersionFiles:
        """Reads a version and checks it; accumulators only when `grid` is given.

        Raises:
            StoreMissing: Not there.
            StoreCorrupt: A file is not what its digest says; the message names it.
        """
        raise NotImplementedError

    def has(self, digest: str) -> bool:
        """Whether it is there."""
        raise NotImplementedError

    def verify(self, digest: str) -> None:
        """Reads every file of the version and recomputes its digests.

        Raises:
            StoreMissing: A file is not there.
            StoreCorrupt: A file was altered; the message names it.
        """
        raise NotImplementedError

    def collect(self, keep: Collection[str], *, grace_seconds: float = 3600.0) -> list[str]:
        """Removes versions not in `keep` and older than the grace time. Gives their digests."""
        raise NotImplementedError

    def drop_accumulators(self, digest: str) -> bool:
        """Frees a version's accumulators (they can be rebuilt from factors). True if there were any."""
        raise NotImplementedError
