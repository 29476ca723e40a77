"""The 16-bit grid: what makes sums of rows exact (DESIGN 2.2, "Exact sums")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mend_core.factors.rows import FactorRows, GridRows


@dataclass(frozen=True, slots=True, eq=False)
class MatrixGrid:
    """One matrix's grid: number = integer x scale[dimension] x 2**exponent.

    Attributes:
        key_scale: (d_in,) float64, positive.
        value_scale: (d_out,) float64, positive.
        key_exponent: Power of two of one key step.
        value_exponent: Power of two of one value step.
    """

    key_scale: Tensor
    value_scale: Tensor
    key_exponent: int
    value_exponent: int


@dataclass(frozen=True, eq=False)
class Grid:
    """Per-matrix grids; part of an editor.

    Attributes:
        matrices: Full parameter name → grid.
    """

    matrices: Mapping[str, MatrixGrid]

    @property
    def digest(self) -> str:
        """``sha256:…`` over scales and exponents."""
        raise NotImplementedError

    @staticmethod
    def calibrate(
        samples: Sequence[FactorRows],
        *,
        key_std: Mapping[str, Tensor] | None = None,
        value_std: Mapping[str, Tensor] | None = None,
        headroom: float = 4.0,
    ) -> Grid:
        """Fits a grid to sample factors.

        Args:
            samples: Factors of typical edits.
            key_std: Per-dimension scale of keys at the base, (d_in,); default: of the samples.
            value_std: Per-dimension scale of values, (d_out,); default: of the samples.
            headroom: How much larger than the largest sample a number may be before it saturates.

        Raises:
            EmptyBatch: No samples.
        """
        raise NotImplementedError

    def encode(self, factor: FactorRows) -> GridRows:
        """Rounds to the grid, saturating; ``.clipped`` counts what did not fit.

        Raises:
            NonFinite: NaN or Inf in the rows.
            EditorMismatch: A matrix the grid has no scale for, or other widths.
        """
        raise NotImplementedError

    def decode(self, rows: GridRows) -> FactorRows:
        """The real numbers the integers stand for, float32."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors for an editor file: ``grid|<matrix>|key_scale`` and so on."""
        raise NotImplementedError

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Grid:
        """Back from `tensors`; other names are ignored.

        Raises:
            EditorCorrupt: Parts of a matrix's grid are missing.
        """
        raise NotImplementedError
