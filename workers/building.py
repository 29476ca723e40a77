"""From a set of factors to a version: exact sums, one solve, weights, files.

A version is a pure function of its set, so building one twice, after a crash or on another worker,
gives the same digest and the same files (DESIGN 2.2).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ledger.records import SetMember, Version
from mend_core.errors import StoreCorrupt, StoreMissing
from mend_core.factors import (
    Accumulators,
    Delta,
    GridRows,
    VersionFiles,
    compose,
    materialise,
    needs_rows,
    platform_tag,
    version_digest,
    weights_digest,
)
from workers.runtime import WarmModel, Weights

log = logging.getLogger("mend.build")


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """A version that exists in memory.

    Attributes:
        digest: Its name.
        members: Digests of its set's factors, sorted.
        accumulators: Exact sums over the set, or None where its rows are few enough to do without.
        weights: Exact edited matrices, ready to activate; empty for the base itself.
        norms: Relative norm of the change per matrix.
        finite: No value of the change is NaN or Inf.
    """

    digest: str
    members: tuple[str, ...]
    accumulators: Accumulators | None
    weights: Weights
    norms: dict[str, float]
    finite: bool


def digest_of(warm: WarmModel, members: Iterable[str]) -> str:
    """A version's name, from its set alone."""
    return version_digest(warm.base.digest, warm.editor.digest, warm.composition.to_dict(), members)


def _rows(warm: WarmModel, digests: Iterable[str]) -> list[GridRows]:
    return [warm.factors.get(digest) for digest in digests]


def _count(parts: Iterable[GridRows]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for part in parts:
        for name, rows in part.rows.items():
            counts[name] = counts.get(name, 0) + len(rows)
    return counts


def _parent_sums(warm: WarmModel, parent: str | None) -> Accumulators | None:
    """The parent's accumulators where it has any; a damaged file costs time, not the version."""
    if parent is None or not warm.versions.has(parent):
        return None
    try:
        return warm.versions.load(parent, warm.editor.grid).accumulators
    except (StoreCorrupt, StoreMissing) as error:
        log.warning("%s; summing the set's factors again", error)
        return None


def build(
    warm: WarmModel,
    *,
    parent: str | None,
    parent_set: Sequence[str],
    adds: Sequence[str],
    removes: Sequence[str] = (),
) -> Built:
    """Build the version whose set is parent + adds - removes (factor digests).

    Raises:
        StoreMissing: A factor of the set is gone.
        StoreCorrupt: A factor of the set was altered.
    """
    gone, held = set(removes), set(parent_set)
    new = [d for d in dict.fromkeys(adds) if d not in held]
    members = tuple(sorted((held - gone) | set(new)))
    if not members:
        return Built(digest_of(warm, ()), (), None, {}, {}, finite=True)
    grid = warm.editor.grid
    sums = _parent_sums(warm, parent)
    rows: list[GridRows] | None = None
    if sums is not None:
        sums = sums.copy()
        sums.add(_rows(warm, new))
        sums.remove(_rows(warm, sorted(gone & held)))
        if needs_rows(warm.composition, grid, sums.counts):
            rows, sums = _rows(warm, members), None
    else:
        rows = _rows(warm, members)
        if not needs_rows(warm.composition, grid, _count(rows)):
            sums = Accumulators(grid, with_gram=warm.composition.kind == "ridge")
            sums.add(rows)
            rows = None
    delta: Delta = compose(warm.composition, grid, sums, rows)
    finite = all(bool(torch.isfinite(change).all()) for change in delta.values())
    weights = materialise(warm.base, delta)
    return Built(digest_of(warm, members), members, sums, weights, warm.norms(delta), finite=finite)


def files_of(warm: WarmModel, built: Built, parent: str | None) -> VersionFiles:
    """What is written of a built version."""
    return VersionFiles(
        base_digest=warm.base.digest,
        editor_digest=warm.editor.digest,
        composition=warm.composition.to_dict(),
        factors=built.members,
        parent=parent,
        accumulators=built.accumulators,
        weights_digest=weights_digest(built.weights),
        platform=platform_tag(),
    )


def weights_of(warm: WarmModel, version: Version, members: Sequence[SetMember]) -> Weights:
    """A committed version's exact weights, from memory or built again.

    Raises:
        StoreMissing: The version's factors are gone.
        StoreCorrupt: They were altered, or the set does not give the version's digest.
    """
    if version.number == 0 or not members:
        return {}
    known = warm.recall(version.digest)
    if known is not None:
        return known
    digests = [m.factor_digest for m in members]
    built = build(warm, parent=version.digest, parent_set=digests, adds=())
    if built.digest != version.digest:
        raise StoreCorrupt(
            f"version {version.number}: its edit set gives {built.digest}, the ledger says "
            f"{version.digest}; run `mend doctor --deep`"
        )
    warm.remember(version.digest, built.weights)
    return built.weights
