"""ENN: Editable Neural Networks (Sinitsin et al., ICLR 2020), as the MEND paper runs it.

MAML for editability: the model itself is trained so that one gradient step does an edit.

    W₀ = W + S                         S: learned shift of the edited matrices
    W₁ = W₀ - η_ℓ ∇_{W₀} L_edit        η: learned per matrix; one or more steps

The outer loss c_edit · NLL(rephrase; W₁) + KL(base ‖ W₁) is differentiated *through* the inner step
(second order). Two things differ from the authors' code, both because a version here is base + ΔW
with ΔW = W₁ - W: the shift is confined to the edited matrices (they train every weight of the
model), and a further term KL(base ‖ W₀) is left out (nobody is ever served W₀: a version without
edits is the base).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mend_core.datasets.edit import Edit
from mend_core.editors.base import Editor, all_finite, not_finite
from mend_core.errors import EmptyBatch
from mend_core.factors import Delta
from mend_core.factors.extract import answer_losses, tapped
from mend_core.models import (
    Base,
    Encoded,
    PrefixCache,
    encode_edits,
    suffix,
    with_delta,
    with_pairs,
)


@dataclass(frozen=True, slots=True)
class EnnConfig:
    """Settings of ENN.

    Attributes:
        steps: Inner gradient steps (released code: 1).
        learning_rate: Initial η (released code: 1e-2).
        first_order: Treat the inner gradient as a constant (an approximation; default exact).
    """

    steps: int = 1
    learning_rate: float = 1e-2
    first_order: bool = False


class EnnNetworks(nn.Module):
    """What ENN trains: shifts and step sizes."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], config: EnnConfig) -> None:
        super().__init__()
        self.config = config
        self.names = tuple(shapes)
        self.shifts = nn.ParameterList(torch.zeros(shape) for shape in shapes.values())
        self.learning_rates = nn.Parameter(torch.full((len(shapes),), config.learning_rate))

    def forward(
        self, base: Base, encoded: Encoded, hidden: Tensor | None, groups: int = 1
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The inner steps of each group of edits; differentiable when gradients are on.

        A weight gradient is Σ δ uᵀ over positions and is kept as that, also where it is itself
        differentiated: a group takes rows, not a matrix.

        Args:
            base: The base, with its own weights in place.
            encoded: Edits with their targets, the groups one after the other, equally many each.
            hidden: States entering the first edited block, (batch, length, d_model); None runs the
                whole model.
            groups: Independent batches of edits.

        Returns:
            Matrix → keys (groups, rows, d_in) and values (groups, rows, d_out) with
            W₁ = W₀ + Σ value keyᵀ.
        """
        second = torch.is_grad_enabled() and not self.config.first_order
        matrices = [base.by_name[name] for name in self.names]
        first = min(matrix.block for matrix in matrices)
        made: dict[str, tuple[Tensor, Tensor]] = {}
        for _ in range(self.config.steps):
            with (
                torch.enable_grad(),
                twice_differentiable(),
                with_delta(base, self.shift),
                with_pairs(base, made),
                tapped(matrices, graph=second) as taps,
            ):
                logits = suffix(base, hidden, first, encoded, keep=encoded.answer_mask)
                # A sum over edits: n edits move n times as far as one, as for MEND, and a group's
                # gradient is its own.
                loss = answer_losses(logits, encoded).sum()
                outputs = [taps.outputs[name] for name in self.names]
                grads = torch.autograd.grad(loss, outputs, create_graph=second)
            for rate, name, grad in zip(self.learning_rates, self.names, grads, strict=True):
                key = _grouped(taps.inputs[name], groups, rate.dtype)
                value = -rate * _grouped(grad, groups, rate.dtype)
                if name in made:
                    key = torch.cat((made[name][0], key), dim=1)
                    value = torch.cat((made[name][1], value), dim=1)
                made[name] = (key, value)
        return made

    @property
    def shift(self) -> dict[str, Tensor]:
        """Matrix → S, (d_out, d_in)."""
        return dict(zip(self.names, self.shifts, strict=True))

    def dense(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Delta:
        """ΔW = W₁ - W of the first group, (d_out, d_in), from what `forward` gave."""
        return {
            name: shift + pairs[name][1][0].T @ pairs[name][0][0]
            for name, shift in self.shift.items()
        }


class EnnEditor(Editor):
    """A trained ENN; see the module. Untrained (`create`) it is one step of fine-tuning."""

    kind: ClassVar[str] = "enn"

    def __init__(
        self, base_digest: str, shapes: Mapping[str, tuple[int, int]], networks: EnnNetworks
    ) -> None:
        super().__init__(base_digest, shapes)
        self.networks = networks

    @classmethod
    def create(
        cls,
        base: Base,
        config: EnnConfig | None = None,
        *,
        matrices: Sequence[str] | None = None,
    ) -> EnnEditor:
        """An untrained editor.

        Raises:
            NoSuchMatrix: A pattern matches nothing.
        """
        shapes = {m.name: (m.d_out, m.d_in) for m in base.matrices(matrices)}
        return cls(base.digest, shapes, EnnNetworks(shapes, config or EnnConfig()).to(base.device))

    def delta(self, base: Base, edits: Sequence[Edit]) -> Delta:
        """See `Editor.delta`."""
        if not edits:
            raise EmptyBatch("there is no edit to apply")
        self.check(base)
        encoded, _, errors = encode_edits(base, edits)
        if errors:
            raise errors[min(errors)]
        assert encoded is not None
        prefix = PrefixCache(base, min(m.block for m in self.matrices_of(base)))
        with torch.no_grad():
            made = self.networks.dense(self.networks(base, encoded, prefix.hidden(encoded)))
        if not all_finite(made):
            otherwise = "the editor gave NaN or Inf for these edits; train it again with smaller lr"
            raise not_finite(base, edits, self.matrices_of(base), otherwise)
        return made

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `Editor.state`."""
        return {"enn": asdict(self.networks.config)}, dict(self.networks.state_dict())

    @classmethod
    def from_state(
        cls,
        base_digest: str,
        shapes: Mapping[str, tuple[int, int]],
        header: dict[str, Any],
        tensors: dict[str, Tensor],
    ) -> EnnEditor:
        """See `Editor.from_state`."""
        networks = EnnNetworks(shapes, EnnConfig(**header["enn"]))
        networks.load_state_dict(tensors)
        networks.requires_grad_(requires_grad=False)
        return cls(base_digest, shapes, networks)


def _grouped(rows: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """(batch, length, d) → (groups, rows, d)."""
    return rows.to(dtype).reshape(groups, -1, rows.shape[-1])


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention as plain arithmetic: the fused kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
