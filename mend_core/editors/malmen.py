"""A ridge hypernetwork (MALMEN, Tan et al., ICLR 2024): learned values, least-squares aggregation.

Per matrix, with raw rows u (key) and δ (gradient) at answer positions, (ũ, g̃) = net(norm([u; δ])):

    v_i = -η_ℓ (u_iᵀ ũ_i) g̃_i          ΔWᵀ = (UᵀU + C + e^{λ_ℓ} I)⁻¹ Uᵀ V

η and λ are learned per matrix. The network's layers clamp *before* scale and shift, so residuals
may be negative, unlike MEND's.

Training is decoupled (`ridge_pairs`): no graph is kept through the solve, in whichever of its two
forms is the smaller; the hypernetwork is back-propagated in chunks of rows, and the model in parts
of the batch (`mend_core.training.objective.descend`), so that their memory does not grow with the
number of edits.

Where the authors' code differs from this: it starts V at N(0, 1) (``init="released"``), keeps the
normaliser running along with training, gives NaN for ever after an update of one row, and makes
keys and gradients of different chunks where the chunk does not divide the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mend_core.editors.idmlp import IDMLP, Init
from mend_core.editors.mend import under
from mend_core.editors.normaliser import Normaliser
from mend_core.editors.ridge import RidgeEditor
from mend_core.factors import Composition, Grid
from mend_core.models import Base


@dataclass(frozen=True, slots=True)
class MalmenConfig:
    """Choices of the ridge hypernetwork; the defaults are the paper's where it has them.

    Attributes:
        rank: Rank of each low-rank layer.
        blocks: Residual layers (``n_blocks``).
        norm: Normalise the rows.
        init: See `LowRankLayer`; the reference has U = 0 and V ~ N(0, 1) ("released").
        shared: One network per shape.
        learning_rate: Initial η.
        ridge: Initial λ (the reference starts at e⁰ = 1).
        learn_ridge: Train λ.
        tokens: Positions that give rows.
    """

    rank: int = 1920
    blocks: int = 2
    norm: bool = True
    init: Init = "identity"
    shared: bool = True
    learning_rate: float = 1e-6
    ridge: float = 1.0
    learn_ridge: bool = True
    tokens: Literal["all", "answer"] = "answer"


class MalmenNetworks(nn.Module):
    """Everything of the hypernetwork that is trained: networks by shape, η and log λ per matrix."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], config: MalmenConfig, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.config = config
        self.names = tuple(shapes)
        self.shapes = dict(shapes)
        self.nets = nn.ModuleDict()
        self.norms = nn.ModuleDict()
        self.place: dict[str, tuple[str, int]] = {}
        groups: dict[str, list[str]] = {}
        for name, (d_out, d_in) in shapes.items():
            key = f"{d_in}x{d_out}" if config.shared else f"m{len(groups)}"
            members = groups.setdefault(key, [])
            self.place[name] = (key, len(members))
            members.append(name)
        for key, members in groups.items():
            width = sum(shapes[members[0]])
            self.nets[key] = IDMLP(
                width,
                config.rank,
                len(members),
                layers=config.blocks,
                init=config.init,
                order="clamp_then_film",
                bias_everywhere=True,
                generator=generator,
            )
            if config.norm:
                self.norms[key] = Normaliser(width)
        count = len(shapes)
        self.learning_rates = nn.Parameter(torch.full((count,), config.learning_rate))
        self.log_ridge = nn.Parameter(
            torch.full((count,), config.ridge).log(), requires_grad=config.learn_ridge
        )

    def update(self, name: str, u: Tensor, delta: Tensor) -> None:
        """Take raw rows of a matrix into its shape's statistics."""
        if self.config.norm:
            norm = self.norms[self.place[name][0]]
            assert isinstance(norm, Normaliser)
            norm.update(torch.cat((u, delta), dim=-1))

    def forward(self, name: str, u: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Raw rows → keys (the raw u) and values (rows, d_out)."""
        key, mode = self.place[name]
        z = torch.cat((u, delta), dim=-1)
        if self.config.norm:
            z = self.norms[key](z)
        pseudo_u, pseudo_delta = self.nets[key](z, mode).split((u.shape[-1], delta.shape[-1]), -1)
        eta = self.learning_rates[self.names.index(name)]
        return u, -eta * (u * pseudo_u).sum(-1, keepdim=True) * pseudo_delta

    def log_ridge_of(self, name: str) -> Tensor:
        """Log λ of one matrix, ()."""
        return self.log_ridge[self.names.index(name)]

    def ridge_of(self, name: str) -> Tensor:
        """λ of one matrix, ()."""
        return self.log_ridge_of(name).exp()


class MalmenEditor(RidgeEditor):
    """A ridge hypernetwork for one base; see the module."""

    kind: ClassVar[str] = "malmen"

    def __init__(
        self,
        base_digest: str,
        shapes: Mapping[str, tuple[int, int]],
        networks: MalmenNetworks,
        *,
        grid: Grid,
        composition: Composition | None = None,
    ) -> None:
        if composition is None:
            ridge = {name: float(networks.ridge_of(name).detach()) for name in shapes}
            composition = Composition("ridge", ridge)
        super().__init__(
            base_digest, shapes, grid=grid, composition=composition, tokens=networks.config.tokens
        )
        self.networks = networks

    @classmethod
    def create(
        cls,
        base: Base,
        config: MalmenConfig | None = None,
        *,
        matrices: Sequence[str] | None = None,
        seed: int = 0,
    ) -> MalmenEditor:
        """An untrained editor; `calibrate` it before use.

        Raises:
            NoSuchMatrix: A pattern matches nothing.
        """
        found = base.matrices(matrices)
        shapes = {m.name: (m.d_out, m.d_in) for m in found}
        networks = MalmenNetworks(shapes, config or MalmenConfig(), seed).to(base.device)
        return cls(base.digest, shapes, networks, grid=Grid({}))

    def transform(self, name: str, u: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """See `FactorEditor.transform`."""
        keys, values = self.networks(name, u, delta)
        return keys, values

    def observe(self, name: str, u: Tensor, delta: Tensor) -> None:
        """See `FactorEditor.observe`."""
        self.networks.update(name, u, delta)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `Editor.state`."""
        tensors = {f"networks.{k}": v for k, v in self.networks.state_dict().items()}
        tensors |= self.grid.tensors() | self.composition.tensors()
        header = {
            "malmen": asdict(self.networks.config),
            "composition": self.composition.to_dict(),
        }
        return header, tensors

    @classmethod
    def from_state(
        cls,
        base_digest: str,
        shapes: Mapping[str, tuple[int, int]],
        header: dict[str, Any],
        tensors: dict[str, Tensor],
    ) -> MalmenEditor:
        """See `Editor.from_state`."""
        networks = MalmenNetworks(shapes, MalmenConfig(**header["malmen"]))
        networks.load_state_dict(under(tensors, "networks."))
        networks.requires_grad_(requires_grad=False)
        return cls(
            base_digest,
            shapes,
            networks,
            grid=Grid.from_tensors(tensors),
            composition=Composition.from_dict(header["composition"], tensors),
        )


class RidgeSolve(torch.autograd.Function):
    """solved = (UUᵀ + λI)⁻¹ V, with ΔW = Σ solved keyᵀ, and its decoupled gradients.

    With G = ∂L/∂solved: ∂L/∂V = (UUᵀ + λI)⁻¹ G and ∂L/∂log λ = -λ ⟨∂L/∂V, solved⟩. In terms of
    S = ΔWᵀ that is ∂L/∂V = U M, ∂L/∂log λ = -λ ⟨M, S⟩ with M = (UᵀU + λI)⁻¹ ∂L/∂S, the form of the
    MALMEN paper, in the smaller space. Keys are data: they get no gradient.

    Solves are float64 whatever the inputs' dtype.
    """

    @staticmethod
    def forward(ctx: Any, keys: Tensor, values: Tensor, log_ridge: Tensor) -> Tensor:
        """Keys (n, d_in), values (n, d_out), log λ () → solved (n, d_out), dtype of values."""
        u = keys.double()
        system = u @ u.T
        system.diagonal().add_(log_ridge.detach().double().exp())
        root = torch.linalg.cholesky(system)
        solved = torch.cholesky_solve(values.double(), root)
        ctx.save_for_backward(root, solved, log_ridge)
        return solved.to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        """See the class."""
        root, solved, log_ridge = ctx.saved_tensors
        inner = torch.cholesky_solve(grads[0].double(), root)
        shrink = -log_ridge.double().exp() * (inner * solved).sum()
        return None, inner.to(grads[0].dtype), shrink.to(log_ridge.dtype)


class RidgePrimal(torch.autograd.Function):
    """S = (UᵀU + λI)⁻¹ UᵀV = ΔWᵀ and its decoupled gradients: `RidgeSolve` in key space.

    With M = (UᵀU + λI)⁻¹ ∂L/∂S: ∂L/∂V = U M and ∂L/∂log λ = -λ ⟨M, S⟩.
    """

    @staticmethod
    def forward(ctx: Any, keys: Tensor, values: Tensor, log_ridge: Tensor) -> Tensor:
        """Keys (n, d_in), values (n, d_out), log λ () → S (d_in, d_out), dtype of values."""
        u = keys.double()
        system = u.T @ u
        system.diagonal().add_(log_ridge.detach().double().exp())
        root = torch.linalg.cholesky(system)
        solution = torch.cholesky_solve(u.T @ values.double(), root)
        ctx.save_for_backward(u, root, solution, log_ridge)
        return solution.to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        """See the class."""
        u, root, solution, log_ridge = ctx.saved_tensors
        inner = torch.cholesky_solve(grads[0].double(), root)
        shrink = -log_ridge.double().exp() * (inner * solution).sum()
        return None, (u @ inner).to(grads[0].dtype), shrink.to(log_ridge.dtype)


def ridge_pairs(keys: Tensor, values: Tensor, log_ridge: Tensor) -> tuple[Tensor, Tensor]:
    """The ridge fit of one batch as pairs, ΔW = Σ value keyᵀ, differentiable in values and log λ.

    Args:
        keys: (n, d_in).
        values: (n, d_out).
        log_ridge: Log λ, ().

    Returns:
        Keys and values of min(n, d_in) pairs: solved in row space while there are fewer rows than
        dimensions, else in key space, whose pairs are the rows of ΔWᵀ.
    """
    if len(keys) <= keys.shape[1]:
        solved = RidgeSolve.apply(keys, values, log_ridge)  # type: ignore[no-untyped-call] # torch's stub
        assert isinstance(solved, Tensor)
        return keys, solved
    solution = RidgePrimal.apply(keys, values, log_ridge)  # type: ignore[no-untyped-call] # torch's stub
    assert isinstance(solution, Tensor)
    return torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device), solution
