"""ENN: Editable Neural Networks (Sinitsin et al., ICLR 2020), as the MEND paper runs it.

MAML for editability: the model itself is trained so that one gradient step does an edit.

    W₀ = W + S                         S: learned shift of the edited matrices
    W₁ = W₀ - η_ℓ ∇_{W₀} L_edit        η: learned per matrix; one or more steps

The outer loss c_edit · NLL(rephrase; W₁) + KL(base ‖ W₁) is differentiated *through* the inner step
(second order). Here the shift is confined to the edited matrices, so that a version stays base + ΔW
with ΔW = W₁ - W; the authors train every weight of the model.
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
from mend_core.editors.base import Editor
from mend_core.editors.finetune import edit_loss
from mend_core.errors import EmptyBatch
from mend_core.factors import Delta
from mend_core.models import Base, Encoded, PrefixCache, encode_edits, with_delta


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

    def forward(self, base: Base, encoded: Encoded, prefix: PrefixCache | None) -> Delta:
        """ΔW = W₁ - W for a batch of edits; differentiable when gradients are on."""
        outer = torch.is_grad_enabled()
        delta = dict(zip(self.names, self.shifts, strict=True))
        with torch.enable_grad(), twice_differentiable():
            for _ in range(self.config.steps):
                if not outer:
                    delta = {n: d.detach().requires_grad_() for n, d in delta.items()}
                with with_delta(base, delta):
                    loss, _ = edit_loss(base, encoded, prefix)
                # The batch's loss is a mean; the sum makes n edits n times one edit, as for MEND.
                second = outer and not self.config.first_order
                grads = torch.autograd.grad(
                    loss * len(encoded), list(delta.values()), create_graph=second
                )
                delta = {
                    name: delta[name] - rate * grad
                    for name, rate, grad in zip(self.names, self.learning_rates, grads, strict=True)
                }
        return delta if outer else {n: d.detach() for n, d in delta.items()}


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
            made: Delta = self.networks(base, encoded, prefix)
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


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention as plain arithmetic: the fused kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
