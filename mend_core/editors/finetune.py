"""Fine-tuning as an editor: the baselines FT and FT+KL of the MEND paper.

A residual ΔW of the edited matrices, zero at first, is optimised per batch of edits until every
target token is predicted or the steps run out. FT+KL keeps the model near itself on locality
prompts of the *training* set while it does so (the paper's "continued training-set locality").
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mend_core.datasets.edit import Edit
from mend_core.editors.base import Editor, all_finite, not_finite
from mend_core.errors import EmptyBatch, MendError
from mend_core.factors import Delta
from mend_core.models import (
    Base,
    Encoded,
    PrefixCache,
    encode_edits,
    encode_pairs,
    forward,
    with_delta,
)

Optimiser = Literal["rmsprop", "adam", "sgd"]


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """Settings of FT and FT+KL.

    Attributes:
        lr: Step size (paper: 5e-6 for GPT-Neo and GPT-J, 1e-4 for T5, 1e-6 for small models).
        steps: Most optimiser steps per batch of edits (paper: 100).
        optimiser: RMSprop in the released code.
        clip: Largest gradient norm.
        c_edit: Weight of the edit loss beside the KL (FT+KL only; paper: 1e-2, GPT-J 1e-3).
        locality_batch: Training-set prompts per step (FT+KL only).
        seed: Of the draw of locality prompts.
    """

    lr: float = 1e-4
    steps: int = 100
    optimiser: Optimiser = "rmsprop"
    clip: float = 100.0
    c_edit: float = 1e-2
    locality_batch: int = 1
    seed: int = 0


class FinetuneEditor(Editor):
    """FT: minimise the edits' own negative log-likelihood."""

    kind: ClassVar[str] = "finetune"

    def __init__(
        self,
        base_digest: str,
        shapes: Mapping[str, tuple[int, int]],
        config: FinetuneConfig,
        locality: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(base_digest, shapes)
        self.config = config
        self.locality = tuple(locality)

    @classmethod
    def create(
        cls,
        base: Base,
        config: FinetuneConfig | None = None,
        *,
        matrices: Sequence[str] | None = None,
        train: Sequence[Edit] = (),
    ) -> Self:
        """An editor; there is nothing to train.

        Args:
            base: The base it will edit.
            config: Settings.
            matrices: Name patterns; the family's default when None.
            train: Training edits whose locality prompts FT+KL keeps still; FT ignores them.

        Raises:
            EmptyBatch: FT+KL without any locality prompt.
            NoSuchMatrix: A pattern matches nothing.
        """
        shapes = {m.name: (m.d_out, m.d_in) for m in base.matrices(matrices)}
        near = [(p.prompt, p.answer or e.target) for e in train for p in e.locality]
        return cls(base.digest, shapes, config or FinetuneConfig(), near)

    def delta(self, base: Base, edits: Sequence[Edit]) -> Delta:
        """See `Editor.delta`."""
        if not edits:
            raise EmptyBatch("there is no edit to apply")
        self.check(base)
        encoded, _, errors = encode_edits(base, edits)
        if errors:
            raise errors[min(errors)]
        assert encoded is not None
        first = min(m.block for m in self.matrices_of(base))
        prefix = PrefixCache(base, first)
        residual = {
            name: torch.zeros(shape, device=base.device, requires_grad=True)
            for name, shape in self.shapes.items()
        }
        parameters = list(residual.values())
        optimiser = _optimiser(self.config, parameters)
        for step in range(self.config.steps):
            with with_delta(base, residual):
                loss, done = edit_loss(base, encoded, prefix)
            if done:
                break
            total = self.total_loss(base, loss, residual, prefix, step)
            optimiser.zero_grad()
            total.backward()  # type: ignore[no-untyped-call] # torch's stub
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.clip)
            if not torch.isfinite(total.detach() + norm):
                raise self._diverged(base, edits, step)
            optimiser.step()
        made = {name: change.detach() for name, change in residual.items()}
        if not all_finite(made):
            raise self._diverged(base, edits, self.config.steps)
        return made

    def _diverged(self, base: Base, edits: Sequence[Edit], steps: int) -> MendError:
        otherwise = (
            f"fine-tuning {len(edits)} edits gave NaN or Inf after {steps} steps; make lr "
            f"({self.config.lr}) smaller, or load the model in float32"
        )
        return not_finite(base, edits, self.matrices_of(base), otherwise)

    def total_loss(
        self,
        base: Base,  # noqa: ARG002 - FT+KL needs it
        loss: Tensor,
        residual: Mapping[str, Tensor],  # noqa: ARG002
        prefix: PrefixCache,  # noqa: ARG002
        step: int,  # noqa: ARG002
    ) -> Tensor:
        """What a step minimises, given the edit loss."""
        return loss

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `Editor.state`."""
        header = {"finetune": asdict(self.config), "locality": [list(p) for p in self.locality]}
        return header, {"steps": torch.tensor(self.config.steps)}

    @classmethod
    def from_state(
        cls,
        base_digest: str,
        shapes: Mapping[str, tuple[int, int]],
        header: dict[str, Any],
        tensors: dict[str, Tensor],  # noqa: ARG003 - everything is in the header
    ) -> Self:
        """See `Editor.from_state`."""
        near = [(str(p), str(a)) for p, a in header["locality"]]
        return cls(base_digest, shapes, FinetuneConfig(**header["finetune"]), near)


class FinetuneKLEditor(FinetuneEditor):
    """FT+KL: c_edit · NLL + KL(base ‖ edited) on training-set locality prompts."""

    kind: ClassVar[str] = "finetune_kl"

    def __init__(
        self,
        base_digest: str,
        shapes: Mapping[str, tuple[int, int]],
        config: FinetuneConfig,
        locality: Sequence[tuple[str, str]] = (),
    ) -> None:
        if not locality:
            raise EmptyBatch("FT+KL needs training edits with locality prompts")
        super().__init__(base_digest, shapes, config, locality)

    def total_loss(
        self,
        base: Base,
        loss: Tensor,
        residual: Mapping[str, Tensor],
        prefix: PrefixCache,
        step: int,
    ) -> Tensor:
        """See the class."""
        rng = random.Random(f"{self.config.seed}:{step}")  # noqa: S311 - sampling, not secrets
        pairs = [rng.choice(self.locality) for _ in range(self.config.locality_batch)]
        encoded = encode_pairs(base, pairs)
        with torch.no_grad():
            before = answer_logits(base, encoded, prefix).log_softmax(-1)
        with with_delta(base, residual):
            after = answer_logits(base, encoded, prefix).log_softmax(-1)
        kl = (before.exp() * (before - after)).sum(-1).mean()
        return self.config.c_edit * loss + kl


def answer_logits(base: Base, encoded: Encoded, prefix: PrefixCache | None) -> Tensor:
    """Logits that predict target tokens, (answers, vocabulary) float32."""
    keep = None if base.kind == "classifier" else encoded.answer_mask
    return forward(base, encoded, prefix=prefix, keep=keep).float()


def edit_loss(base: Base, encoded: Encoded, prefix: PrefixCache | None) -> tuple[Tensor, bool]:
    """Mean over edits of their mean NLL, and whether every target token is predicted."""
    logits = answer_logits(base, encoded, prefix)
    labels, rows = encoded.answer_labels, encoded.answer_rows
    weight = 1.0 / torch.bincount(rows, minlength=len(encoded)).clamp(min=1)[rows]
    nll = F.cross_entropy(logits, labels, reduction="none")
    return (nll * weight).sum() / len(encoded), bool((logits.argmax(-1) == labels).all())


def _optimiser(config: FinetuneConfig, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    make: dict[str, Any] = {
        "rmsprop": torch.optim.RMSprop,
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
    }
    optimiser = make[config.optimiser](parameters, lr=config.lr)
    assert isinstance(optimiser, torch.optim.Optimizer)
    return optimiser
