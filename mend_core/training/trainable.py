"""What the training loop needs from a method: networks, pairs from raw rows, a final editor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mend_core.editors.base import FactorEditor
from mend_core.editors.malmen import MalmenConfig, MalmenEditor, MalmenNetworks, ridge_solve
from mend_core.editors.mend import MendConfig, MendEditor, MendNetworks
from mend_core.factors import FactorRows, Grid, Rows
from mend_core.models import Base
from mend_core.training.examples import Example
from mend_core.training.objective import Pairs

ROWS = 1024
"""Rows that go through a hypernetwork at a time."""


class Trainable(ABC):
    """A method in training.

    Attributes:
        module: Everything that is saved in a checkpoint: parameters and statistics.
        tokens: Positions that give raw rows.
    """

    module: nn.Module
    tokens: Any

    @abstractmethod
    def groups(self, lr: float, lr_lr: float) -> list[dict[str, Any]]:
        """Optimiser groups: the networks at `lr`, learned rates at `lr_lr`."""

    @abstractmethod
    def observe(self, examples: Sequence[Example]) -> None:
        """Take raw rows into the normaliser."""

    @abstractmethod
    def pairs(self, groups: Sequence[Sequence[Example]]) -> Pairs:
        """The change each group of examples makes together, with a graph to the parameters."""

    @abstractmethod
    def editor(self, samples: Sequence[Example]) -> FactorEditor:
        """The finished editor, its grid calibrated on `samples`."""


class MendTrainable(Trainable):
    """MEND in training; see `mend_core.editors.mend`."""

    def __init__(
        self, base: Base, config: MendConfig, shapes: Mapping[str, tuple[int, int]], seed: int
    ) -> None:
        self.base_digest = base.digest
        self.shapes = dict(shapes)
        self.module = MendNetworks(shapes, config, seed).to(base.device)
        self.tokens = config.tokens

    @property
    def networks(self) -> MendNetworks:
        """The module, typed."""
        assert isinstance(self.module, MendNetworks)
        return self.module

    def groups(self, lr: float, lr_lr: float) -> list[dict[str, Any]]:
        """See `Trainable.groups`."""
        rates = self.networks.learning_rates
        nets = [p for p in self.networks.parameters() if p is not rates]
        return [{"params": nets, "lr": lr}, {"params": [rates], "lr": lr_lr}]

    def observe(self, examples: Sequence[Example]) -> None:
        """See `Trainable.observe`."""
        for name in self.shapes:
            u = torch.cat([e.rows[name][0] for e in examples])
            delta = torch.cat([e.rows[name][1] for e in examples])
            self.networks.update(name, u, delta)

    def pairs(self, groups: Sequence[Sequence[Example]]) -> Pairs:
        """See `Trainable.pairs`."""
        made: dict[str, tuple[Tensor, Tensor]] = {}
        for name in self.shapes:
            u, delta, sizes = stacked(groups, name)
            keys, values = self.networks(name, u, delta)
            made[name] = (padded(keys, sizes), padded(values, sizes))
        return made

    def editor(self, samples: Sequence[Example]) -> MendEditor:
        """See `Trainable.editor`."""
        editor = MendEditor(self.base_digest, self.shapes, self.networks, Grid({}))
        editor.grid = calibrated(editor, samples)
        return editor


class MalmenTrainable(Trainable):
    """The ridge hypernetwork in training; see `mend_core.editors.malmen`."""

    def __init__(
        self, base: Base, config: MalmenConfig, shapes: Mapping[str, tuple[int, int]], seed: int
    ) -> None:
        self.base_digest = base.digest
        self.shapes = dict(shapes)
        self.module = MalmenNetworks(shapes, config, seed).to(base.device)
        self.tokens = config.tokens

    @property
    def networks(self) -> MalmenNetworks:
        """The module, typed."""
        assert isinstance(self.module, MalmenNetworks)
        return self.module

    def groups(self, lr: float, lr_lr: float) -> list[dict[str, Any]]:
        """See `Trainable.groups`; η and λ are the learned rates."""
        rates = [self.networks.learning_rates, self.networks.log_ridge]
        nets = list(self.networks.nets.parameters())
        return [
            {"params": nets, "lr": lr},
            {"params": [r for r in rates if r.requires_grad], "lr": lr_lr},
        ]

    def observe(self, examples: Sequence[Example]) -> None:
        """See `Trainable.observe`."""
        for name in self.shapes:
            u = torch.cat([e.rows[name][0] for e in examples])
            delta = torch.cat([e.rows[name][1] for e in examples])
            self.networks.update(name, u, delta)

    def pairs(self, groups: Sequence[Sequence[Example]]) -> Pairs:
        """See `Trainable.pairs`; rows go through the network in chunks, recomputed in backward."""
        made: dict[str, tuple[Tensor, Tensor]] = {}
        for name in self.shapes:
            u, delta, sizes = stacked(groups, name)
            values = torch.cat(
                [
                    self._values(name, keys, gradients)
                    for keys, gradients in zip(u.split(ROWS), delta.split(ROWS), strict=True)  # type: ignore[no-untyped-call] # torch's stub
                ]
            )
            log_ridge = self.networks.log_ridge_of(name)
            solved = [
                ridge_solve(k, v, log_ridge)
                for k, v in zip(torch.split(u, sizes), torch.split(values, sizes), strict=True)
            ]
            made[name] = (padded(u, sizes), padded(torch.cat(solved), sizes))
        return made

    def _values(self, name: str, u: Tensor, delta: Tensor) -> Tensor:
        def run(keys: Tensor, gradients: Tensor) -> Tensor:
            values: Tensor = self.networks(name, keys, gradients)[1]
            return values

        if not torch.is_grad_enabled():
            return run(u, delta)
        values = checkpoint(run, u, delta, use_reentrant=False)
        assert isinstance(values, Tensor)
        return values

    def editor(self, samples: Sequence[Example]) -> MalmenEditor:
        """See `Trainable.editor`."""
        editor = MalmenEditor(self.base_digest, self.shapes, self.networks, grid=Grid({}))
        editor.grid = calibrated(editor, samples)
        return editor


def stacked(groups: Sequence[Sequence[Example]], name: str) -> tuple[Tensor, Tensor, list[int]]:
    """Raw rows of one matrix over all groups, and how many each group has."""
    u = torch.cat([e.rows[name][0] for group in groups for e in group])
    delta = torch.cat([e.rows[name][1] for group in groups for e in group])
    return u, delta, [sum(len(e.rows[name][0]) for e in group) for group in groups]


def padded(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """(rows, d) → (groups, most rows, d), zeros behind."""
    return torch.nn.utils.rnn.pad_sequence(list(torch.split(rows, list(sizes))), batch_first=True)


def calibrated(editor: FactorEditor, samples: Sequence[Example]) -> Grid:
    """A grid fitted to the factors the editor makes of `samples`."""
    factors = []
    with torch.no_grad():
        for number, example in enumerate(samples):
            rows = {}
            for name, (u, delta) in example.rows.items():
                keys, values = editor.transform(name, u, delta)
                rows[name] = Rows(keys.cpu(), values.cpu())
            factors.append(FactorRows(str(number), rows))
    return Grid.calibrate(factors)
