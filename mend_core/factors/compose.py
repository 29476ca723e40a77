"""From a set of factors to ΔW: MEND's sum, or ridge least squares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from mend_core.digests import json_digest
from mend_core.factors.accumulators import Accumulators
from mend_core.factors.grid import Grid
from mend_core.factors.rows import Delta, GridRows


@dataclass(frozen=True, eq=False)
class Composition:
    """How rows become ΔW. Saved inside the editor; its settings name every version.

    * ``sum``: ΔW = strength · Σ v uᵀ (MEND; the learned rate is inside v).
    * ``ridge``: ΔWᵀ = strength · (UᵀU + C + λI)⁻¹ UᵀV (MALMEN, UltraEdit), C the Gram matrix of
      protected keys.

    Attributes:
        kind: ``sum`` or ``ridge``.
        ridge: Full parameter name → λ > 0. Ignored by ``sum``.
        protected: Full parameter name → C (d_in, d_in) float64 in the units of decoded keys, or
            absent. Ignored by ``sum``.
        strength: One factor on the whole ΔW.
    """

    kind: Literal["sum", "ridge"]
    ridge: Mapping[str, float] = field(default_factory=dict)
    protected: Mapping[str, Tensor] = field(default_factory=dict)
    strength: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Canonical JSON settings; C by its digest."""
        raise NotImplementedError

    @property
    def digest(self) -> str:
        """``sha256:…`` over `to_dict`."""
        return json_digest(self.to_dict())

    def tensors(self) -> dict[str, Tensor]:
        """The protected Gram matrices as named tensors ``protected|<matrix>`` for an editor file."""
        raise NotImplementedError

    @staticmethod
    def from_dict(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Composition:
        """Back from `to_dict` and `tensors`.

        Raises:
            EditorCorrupt: Settings or tensors missing or altered.
        """
        raise NotImplementedError


def compose(
    composition: Composition,
    grid: Grid,
    accumulators: Accumulators | None,
    rows: Iterable[GridRows] | None = None,
) -> Delta:
    """ΔW per matrix, float64, from a set of factors.

    The same set gives the same bits on one platform, whatever the order and whoever computed the
    accumulators: the form of the solve (n x n or d x d) depends on the set alone and solves run on
    one thread.

    Args:
        composition: The settings.
        grid: What the integers mean.
        accumulators: Sums over the set, or None to compute them from `rows`.
        rows: The set's factors. May be None when `needs_rows` says so.

    Raises:
        EmptyBatch: Neither accumulators nor rows.
        EditorMismatch: Rows of another grid.
    """
    raise NotImplementedError


def needs_rows(composition: Composition, grid: Grid, counts: Mapping[str, int]) -> bool:
    """Whether `compose` would solve in row space for a set of this size and so needs its rows.

    Args:
        composition: The settings.
        grid: For the widths.
        counts: Full parameter name → number of rows in the set.
    """
    raise NotImplementedError
