"""What the training loop needs from a method: something to train, changes, a final editor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from mend_core.editors.base import Editor
from mend_core.models import Base
from mend_core.training.change import Change
from mend_core.training.examples import Example


class Trainable(ABC):
    """A method in training.

    Attributes:
        base: The base, with its own weights.
        module: Everything that is saved in a checkpoint: parameters and statistics.
        shapes: Edited matrix → (d_out, d_in).
        tokens: Positions that give raw rows.
        running: Statistics take a step's rows in as `change` meets them, matrix by matrix, and not
            by `observe` (the authors' code).
    """

    running = False
    tokens: Literal["all", "answer"] = "all"

    def __init__(
        self, base: Base, module: nn.Module, shapes: Mapping[str, tuple[int, int]]
    ) -> None:
        self.base = base
        self.module = module.to(base.device)
        self.shapes = dict(shapes)

    def rates(self) -> list[nn.Parameter]:
        """Learned step sizes, which move at a rate of their own."""
        return []

    def groups(self, lr: float, lr_lr: float) -> list[dict[str, Any]]:
        """Optimiser groups: the networks at `lr`, learned step sizes at `lr_lr`."""
        rates = [r for r in self.rates() if r.requires_grad]
        apart = {id(r) for r in self.rates()}
        nets = [p for p in self.module.parameters() if p.requires_grad and id(p) not in apart]
        groups = [{"params": nets, "lr": lr}, {"params": rates, "lr": lr_lr}]
        return [group for group in groups if group["params"]]

    def observe(self, examples: Sequence[Example]) -> None:  # noqa: B027 - optional, not abstract
        """Take raw rows into the statistics; nothing where the method keeps none."""

    @abstractmethod
    def change(self, groups: Sequence[Sequence[Example]]) -> Change:
        """The change each group of examples makes together, with a graph to the parameters."""

    @abstractmethod
    def editor(self, samples: Sequence[Example]) -> Editor:
        """The finished editor.

        Args:
            samples: Typical examples, for what is fitted at the end, such as a grid.
        """
