"""What a method in training makes of groups of edits: weight changes, and how a forward feels them.

Groups are independent batches of edits whose losses are computed in one forward pass. The batch of
that pass holds the groups one after the other, equally many sequences each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mend_core.models import Base, with_delta, with_pairs


class Change(ABC):
    """One ΔW per group and matrix, with a graph to whatever is trained."""

    @abstractmethod
    def applied(self, base: Base) -> AbstractContextManager[None]:
        """Adds each group's ΔW to its share of every batch run inside; differentiable.

        Raises:
            NoSuchMatrix: A matrix is none of the base's, or has another shape.
        """

    @abstractmethod
    def of_groups(self, start: int, stop: int) -> Change:
        """The change of some of the groups, sharing tensors with this one."""

    @abstractmethod
    def cut(self) -> tuple[Change, list[tuple[Tensor, Tensor]]]:
        """The same change as leaves of a new graph, and (tensor here, leaf there) of each."""


@dataclass(frozen=True, slots=True, eq=False)
class Pairs(Change):
    """ΔW = Σ value keyᵀ per group, never formed.

    Attributes:
        pairs: Matrix → keys (groups, rows, d_in) and values (groups, rows, d_out); zero rows where
            a group has fewer than another.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]

    def applied(self, base: Base) -> AbstractContextManager[None]:
        """See `Change.applied`."""
        return with_pairs(base, self.pairs)

    def of_groups(self, start: int, stop: int) -> Pairs:
        """See `Change.of_groups`."""
        return Pairs({n: (k[start:stop], v[start:stop]) for n, (k, v) in self.pairs.items()})

    def cut(self) -> tuple[Pairs, list[tuple[Tensor, Tensor]]]:
        """See `Change.cut`."""
        ends: list[tuple[Tensor, Tensor]] = []
        leaves = {n: (_leaf(k, ends), _leaf(v, ends)) for n, (k, v) in self.pairs.items()}
        return Pairs(leaves), ends


@dataclass(frozen=True, slots=True, eq=False)
class Shifted(Change):
    """ΔW = S + Σ value keyᵀ: a whole matrix that all groups share, and each group's pairs.

    Attributes:
        shift: Matrix → S, (d_out, d_in).
        pairs: As in `Pairs`.
    """

    shift: Mapping[str, Tensor]
    pairs: Mapping[str, tuple[Tensor, Tensor]]

    @contextmanager
    def applied(self, base: Base) -> Iterator[None]:
        """See `Change.applied`."""
        with with_delta(base, self.shift), with_pairs(base, self.pairs):
            yield

    def of_groups(self, start: int, stop: int) -> Shifted:
        """See `Change.of_groups`."""
        return Shifted(self.shift, Pairs(self.pairs).of_groups(start, stop).pairs)

    def cut(self) -> tuple[Shifted, list[tuple[Tensor, Tensor]]]:
        """See `Change.cut`."""
        pairs, ends = Pairs(self.pairs).cut()
        return Shifted({n: _leaf(s, ends) for n, s in self.shift.items()}, pairs.pairs), ends


def _leaf(made: Tensor, ends: list[tuple[Tensor, Tensor]]) -> Tensor:
    """A leaf with the values of `made`; noted in `ends` if gradients shall reach it."""
    leaf = made.detach()
    if made.requires_grad:
        leaf.requires_grad_()
        ends.append((made, leaf))
    return leaf


def padded(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """(rows, d) → (groups, most rows, d), zeros behind."""
    return torch.nn.utils.rnn.pad_sequence(list(torch.split(rows, list(sizes))), batch_first=True)
