"""Exact sums over rows: Gram and cross matrices that don't depend on order."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from mend_core.factors.grid import Grid
from mend_core.factors.rows import GridRows

MAX_ROWS = 1 << 23
"""Above this many rows a sum of 30-bit products may leave fp64's 53 exact bits."""


class Accumulators:
    """Σ u uᵀ and Σ u vᵀ per matrix, over integers, exact in float64.

    Whatever the order of adding, removing and merging, the same set gives the same bits.

    Attributes:
        grid_digest: The grid of the rows.
        gram: Full parameter name → (d_in, d_in) float64 integers; empty when not `with_gram`.
        cross: Full parameter name → (d_in, d_out) float64 integers.
        counts: Full parameter name → number of rows.
        with_gram: False for a ``sum`` composition, which needs the cross matrices only.
    """

    def __init__(self, grid: Grid, *, with_gram: bool = True) -> None:
        self.grid_digest = grid.digest
        self.with_gram = with_gram
        self.gram: dict[str, Tensor] = {}
        self.cross: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, rows: Iterable[GridRows]) -> None:
        """Adds factors.

        Raises:
            EditorMismatch: Rows of another grid.
            BatchError: More rows than can be summed exactly.
        """
        raise NotImplementedError

    def remove(self, rows: Iterable[GridRows]) -> None:
        """Takes factors out, leaving exactly what was there before they were added."""
        raise NotImplementedError

    def merge(self, other: Accumulators) -> None:
        """Adds another set's sums (the sets must not overlap)."""
        raise NotImplementedError

    def copy(self) -> Accumulators:
        """An independent copy."""
        raise NotImplementedError

    @property
    def digest(self) -> str:
        """``sha256:…`` over counts and sums."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors for a file; Gram matrices as their upper triangle."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Writes one safetensors file, atomically.

        Raises:
            StoreFull: No room left.
        """
        raise NotImplementedError

    @staticmethod
    def load(path: Path, grid: Grid) -> Accumulators:
        """Reads back and checks the digest.

        Raises:
            StoreMissing: No such file.
            StoreCorrupt: Not what its digest says.
        """
        raise NotImplementedError
