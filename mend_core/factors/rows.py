"""An edit's rows, as real numbers and on the 16-bit grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from mend_core.digests import tensor_digest

Delta = dict[str, Tensor]
"""Full parameter name → ΔW (d_out, d_in), float32 or float64."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of one matrix: ΔW = Σ v uᵀ (sum), or the ridge solution that maps u to v.

    Attributes:
        u: Keys, (rows, d_in) float32.
        v: Values, (rows, d_out) float32. A protection's are zero.
    """

    u: Tensor  # (rows, d_in)
    v: Tensor  # (rows, d_out)

    def __len__(self) -> int:
        """Number of rows."""
        return self.u.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class FactorRows:
    """One edit's rows per matrix.

    Attributes:
        edit_id: The edit.
        rows: Full parameter name → rows.
    """

    edit_id: str
    rows: dict[str, Rows]


@dataclass(frozen=True, slots=True, eq=False)
class Int16Rows:
    """Rows of one matrix on the grid.

    Attributes:
        u: (rows, d_in) int16.
        v: (rows, d_out) int16.
    """

    u: Tensor  # (rows, d_in)
    v: Tensor  # (rows, d_out)

    def __len__(self) -> int:
        """Number of rows."""
        return self.u.shape[0]


@dataclass(frozen=True, eq=False)
class GridRows:
    """One edit's factor on the grid: what is stored, summed and named by its digest.

    The edit's id is part of the digest, so two edits that happen to have the same rows stay two.

    Attributes:
        edit_id: The edit.
        grid_digest: The grid that gives the integers their meaning.
        rows: Full parameter name → int16 rows.
        clipped: How many numbers did not fit and were saturated.
    """

    edit_id: str
    grid_digest: str
    rows: Mapping[str, Int16Rows]
    clipped: int = 0

    def header(self) -> dict[str, Any]:
        """What the digest covers beside the tensors."""
        return {
            "kind": "mend.factor.1",
            "edit_id": self.edit_id,
            "grid": self.grid_digest,
            "clipped": self.clipped,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors: ``<matrix>|u`` and ``<matrix>|v``."""
        named: dict[str, Tensor] = {}
        for name, rows in self.rows.items():
            named[f"{name}|u"] = rows.u
            named[f"{name}|v"] = rows.v
        return named

    @cached_property
    def digest(self) -> str:
        """``sha256:…`` over the edit id, the grid and the integers."""
        return tensor_digest(self.tensors(), self.header())

    @property
    def nbytes(self) -> int:
        """Size of the integers in bytes."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())
