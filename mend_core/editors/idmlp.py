"""The editor network: a low-rank residual MLP that is the identity when it is born.

MEND (Mitchell et al. 2022), eq. 3:

    h = z + σ(s₁ ⊙ (U₁V₁z + b) + o₁)        g(z) = h + σ(s₂ ⊙ U₂V₂h + o₂)

with U = b = o = 0, s = 1 and Xavier V at initialisation, σ = ReLU. σ is computed as clamp(min=0),
whose gradient at exactly 0 is 1: with torch's relu (gradient 0 at 0) an identity-initialised
network could never leave the identity.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Init = Literal["identity", "released", "random", "released_random"]
Order = Literal["film_then_clamp", "clamp_then_film"]


class LowRankLayer(nn.Module):
    """One residual layer: x + clamp(s ⊙ (U V x + b) + o), s and o chosen by mode.

    Args:
        dim: Width D of input and output.
        rank: Rank of the weight, cut to D.
        modes: Number of matrices that share the layer.
        init: "identity" (U = 0, V Xavier: the paper), "released" (U = 0, V ~ N(0, 1): the authors'
            code), "random" (both Xavier: the ablation "no identity init"), "released_random" (that
            ablation in the authors' code: U's Xavier has ReLU's gain, and x is not added back).
        film: Scale and shift by mode; without them s = 1 and o = 0.
        bias: The paper has b in the first layer only; the authors' code in both.
        order: "film_then_clamp" is MEND; "clamp_then_film" is MALMEN, s ⊙ clamp(U V x + b) + o,
            whose residual may be negative.
    """

    def __init__(
        self,
        dim: int,
        rank: int,
        modes: int,
        *,
        init: Init = "identity",
        bias: bool = True,
        order: Order = "film_then_clamp",
        film: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        rank = min(rank, dim)
        self.residual = init != "released_random"
        self.order = order
        self.u = nn.Parameter(torch.zeros(dim, rank))
        self.v = nn.Parameter(torch.empty(rank, dim))
        if init == "released":
            nn.init.normal_(self.v, generator=generator)
        else:
            nn.init.xavier_uniform_(self.v, generator=generator)
        if init == "random":
            nn.init.xavier_uniform_(self.u, generator=generator)
        elif init == "released_random":
            gain = nn.init.calculate_gain("relu")
            nn.init.xavier_uniform_(self.u, gain=gain, generator=generator)
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.scale = nn.Parameter(torch.ones(modes, dim)) if film else None
        self.shift = nn.Parameter(torch.zeros(modes, dim)) if film else None

    def forward(self, x: Tensor, mode: int | Tensor) -> Tensor:
        """(rows, D) → (rows, D); `mode` is one index or one per row."""
        a = (x @ self.v.T) @ self.u.T
        if self.bias is not None:
            a = a + self.bias
        if self.scale is None or self.shift is None:
            a = torch.clamp(a, min=0)
        elif self.order == "film_then_clamp":
            a = torch.clamp(a * self.scale[mode] + self.shift[mode], min=0)
        else:
            return x + torch.clamp(a, min=0) * self.scale[mode] + self.shift[mode]
        return x + a if self.residual else a


class IDMLP(nn.Module):
    """`layers` low-rank residual layers in a row, the identity at initialisation by default.

    For the arguments see `LowRankLayer`.
    """

    def __init__(
        self,
        dim: int,
        rank: int,
        modes: int,
        *,
        layers: int = 2,
        init: Init = "identity",
        order: Order = "film_then_clamp",
        bias_everywhere: bool = False,
        film: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            LowRankLayer(
                dim,
                rank,
                modes,
                init=init,
                bias=bias_everywhere or i == 0,
                order=order,
                film=film,
                generator=generator,
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor, mode: int | Tensor) -> Tensor:
        """(rows, D) → (rows, D)."""
        for layer in self.layers:
            x = layer(x, mode)
        return x
