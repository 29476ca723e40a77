"""A Gram matrix as a few exact keys, so that it fits an editor file and is the same everywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 32767
"""Largest magnitude on the 16-bit grid."""


@dataclass(frozen=True, slots=True, eq=False)
class PrincipalKeys:
    """The leading directions of a Gram matrix, as integer keys.

    Their Gram matrix is a sum of products of integers below 2¹⁵: exact in float64, hence the same
    bits on every platform, which a matrix product of floats is not.

    Attributes:
        grid: (keys, d_in) int16.
        exponent: A key is ``grid * 2**exponent``.
        rest: Mean eigenvalue of the directions left out.
    """

    grid: Tensor
    exponent: int
    rest: float

    @classmethod
    def of(cls, gram: Tensor, keep: int) -> PrincipalKeys:
        """The `keep` leading directions of `gram` (d_in, d_in) float64."""
        values, vectors = torch.linalg.eigh(gram)
        keep = min(keep, len(values))
        leading = values[-keep:].clamp(min=0)
        keys = vectors[:, -keep:].T * leading.sqrt()[:, None]
        largest = float(keys.abs().max())
        exponent = math.ceil(math.log2(largest / LARGEST)) if largest > 0 else 0
        grid = torch.round(keys * 2.0**-exponent).to(torch.int16)
        others = values[:-keep].clamp(min=0)
        return cls(grid, exponent, float(others.mean()) if len(others) else 0.0)

    def gram(self) -> Tensor:
        """Σ u uᵀ over the keys, (d_in, d_in) float64, exact."""
        whole = self.grid.double()
        return (whole.T @ whole) * 4.0**self.exponent
