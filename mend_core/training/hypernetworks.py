"""MEND and MALMEN in training: networks from an edit's raw rows to the rows it is kept as."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mend_core.editors.base import FactorEditor
from mend_core.editors.malmen import MalmenEditor, MalmenNetworks, ridge_pairs
from mend_core.editors.mend import MendEditor, MendNetworks
from mend_core.factors import FactorRows, Grid, Rows
from mend_core.models import Base
from mend_core.training.change import Pairs, padded
from mend_core.training.examples import Example
from mend_core.training.trainable import Trainable

ROWS = 1024
"""Rows that go through MALMEN's network at a time."""


class RowTrainable(Trainable):
    """A method whose change is made of each matrix's stacked rows.

    Args:
        base: The base.
        networks: What is trained.
        shapes: Edited matrix → (d_out, d_in).
    """

    networks: MendNetworks | MalmenNetworks

    def __init__(
        self,
        base: Base,
        networks: MendNetworks | MalmenNetworks,
        shapes: Mapping[str, tuple[int, int]],
    ) -> None:
        super().__init__(base, networks, shapes)
        self.networks = networks
        self.tokens = networks.config.tokens

    def rates(self) -> list[nn.Parameter]:
        """See `Trainable.rates`."""
        return [self.networks.learning_rates]

    def observe(self, examples: Sequence[Example]) -> None:
        """See `Trainable.observe`: the normaliser's statistics."""
        for name in self.shapes:
            u = torch.cat([e.rows[name][0] for e in examples])
            delta = torch.cat([e.rows[name][1] for e in examples])
            self.networks.update(name, u, delta)

    def change(self, groups: Sequence[Sequence[Example]]) -> Pairs:
        """See `Trainable.change`."""
        made: dict[str, tuple[Tensor, Tensor]] = {}
        for name in self.shapes:
            u, delta, sizes = stacked(groups, name)
            if self.running and torch.is_grad_enabled():
                self.networks.update(name, u, delta)
            made[name] = self.pair(name, u, delta, sizes)
        return Pairs(made)

    def editor(self, samples: Sequence[Example]) -> FactorEditor:
        """See `Trainable.editor`; its grid is calibrated on the samples."""
        editor = self.uncalibrated()
        editor.grid = calibrated(editor, samples)
        return editor

    @abstractmethod
    def pair(
        self, name: str, u: Tensor, delta: Tensor, sizes: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Keys (groups, rows, d_in) and values (groups, rows, d_out) of one matrix' changes.

        Args:
            name: The matrix.
            u: Raw keys of all groups, (rows, d_in).
            delta: Raw gradients, (rows, d_out).
            sizes: Rows of each group.
        """

    @abstractmethod
    def uncalibrated(self) -> FactorEditor:
        """The editor with an empty grid."""


class MendTrainable(RowTrainable):
    """MEND in training; see `mend_core.editors.mend`."""

    networks: MendNetworks

    def pair(
        self,
        name: str,
        u: Tensor,
        delta: Tensor,
        sizes: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """See `RowTrainable.pair`."""
        keys, values = self.networks(name, u, delta)
        return padded(keys, sizes), padded(values, sizes)

    def uncalibrated(self) -> MendEditor:
        """See `RowTrainable.uncalibrated`."""
        return MendEditor(self.base.digest, self.shapes, self.networks, Grid({}))


class MalmenTrainable(RowTrainable):
    """The ridge hypernetwork in training; see `mend_core.editors.malmen`."""

    networks: MalmenNetworks

    def rates(self) -> list[nn.Parameter]:
        """See `Trainable.rates`; λ is learned as η is."""
        return [*super().rates(), self.networks.log_ridge]

    def pair(
        self, name: str, u: Tensor, delta: Tensor, sizes: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """See `RowTrainable.pair`; the network sees rows in chunks, recomputed in backward."""
        values = torch.cat(
            [
                self._values(name, keys, gradients)
                for keys, gradients in zip(u.split(ROWS), delta.split(ROWS), strict=True)  # type: ignore[no-untyped-call] # torch's stub
            ]
        )
        log_ridge = self.networks.log_ridge_of(name)
        pairs = [
            ridge_pairs(k, v, log_ridge)
            for k, v in zip(
                torch.split(u, list(sizes)), torch.split(values, list(sizes)), strict=True
            )
        ]
        rows = [len(keys) for keys, _ in pairs]
        keys, solved = (torch.cat([pair[side] for pair in pairs]) for side in (0, 1))
        return padded(keys, rows), padded(solved, rows)

    def _values(self, name: str, u: Tensor, delta: Tensor) -> Tensor:
        def run(keys: Tensor, gradients: Tensor) -> Tensor:
            values: Tensor = self.networks(name, keys, gradients)[1]
            return values

        if not torch.is_grad_enabled():
            return run(u, delta)
        values = checkpoint(run, u, delta, use_reentrant=False)
        assert isinstance(values, Tensor)
        return values

    def uncalibrated(self) -> MalmenEditor:
        """See `RowTrainable.uncalibrated`."""
        return MalmenEditor(self.base.digest, self.shapes, self.networks, grid=Grid({}))


def stacked(groups: Sequence[Sequence[Example]], name: str) -> tuple[Tensor, Tensor, list[int]]:
    """Raw rows of one matrix over all groups, and how many each group has."""
    u = torch.cat([e.rows[name][0] for group in groups for e in group])
    delta = torch.cat([e.rows[name][1] for group in groups for e in group])
    return u, delta, [sum(len(e.rows[name][0]) for e in group) for group in groups]


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
