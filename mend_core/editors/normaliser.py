"""Running mean and standard deviation per dimension (Welford), with all of its state saved."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normaliser(nn.Module):
    """(x - mean) / (std + eps) with statistics of every row seen (MEND, appendix A).

    Batched update after Chan et al.: exact for any split of the rows into batches, up to rounding,
    and free of the peers' defects: a one-row update gives no NaN, and the count is part of the
    state, so that a resumed run goes on where it stopped. With fewer than two rows the standard
    deviation is not defined and counts as 1.

    Statistics are fp64; inputs and outputs keep their dtype.

    Args:
        dim: Width of a row.
        eps: Added to the standard deviation.
    """

    mean: Tensor  # (dim,) fp64
    m2: Tensor  # (dim,) fp64: sum of squared deviations
    count: Tensor  # () int64

    def __init__(self, dim: int, eps: float = 1e-7) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("m2", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Take `rows` (n, dim) into the statistics; n may be 0 or 1."""
        n = rows.shape[0]
        if n == 0:
            return
        x = rows.to(torch.float64)
        old = int(self.count)
        mean = x.mean(0)
        shift = mean - self.mean
        total = old + n
        self.m2 += ((x - mean) ** 2).sum(0) + shift**2 * (old * n / total)
        self.mean += shift * (n / total)
        self.count += n

    @property
    def std(self) -> Tensor:
        """Sample standard deviation (dim,) fp64; ones below two rows."""
        n = int(self.count)
        minimum = 2
        if n < minimum:
            return torch.ones_like(self.mean)
        return (self.m2 / (n - 1)).sqrt()

    def forward(self, rows: Tensor) -> Tensor:
        """Normalised rows (n, dim), dtype kept."""
        std = (self.std + self.eps).to(rows.dtype)
        return (rows - self.mean.to(rows.dtype)) / std
