"""What a method in training makes of groups of edits: weight changes, and how a forward feels them.

Groups are independent batches of edits whose losses are computed in one forward pass. The batch of
that pass holds the groups one after the other, equally many sequences each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mend_core.models import Base, with_delta
from mend_core.models.overlay import matrix_of


class Change(ABC):
    """One ΔW per group and matrix, with a graph to whatever is trained."""

    @abstractmethod
    def applied(self, base: Base) -> AbstractContextManager[None]:
        """Adds each group's ΔW to its share of every batch run inside; differentiable.

        Raises:
            NoSuchMatrix: A matrix is none of the base's, or has another shape.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Pairs(Change):
    """ΔW = Σ value keyᵀ per group, never formed.

    Attributes:
        pairs: Matrix → keys (groups, rows, d_in) and values (groups, rows, d_out); zero rows where
            a group has fewer than another.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]

    @contextmanager
    def applied(self, base: Base) -> Iterator[None]:
        """See `Change.applied`."""

        def hook_for(keys: Tensor, values: Tensor) -> Any:
            def hook(_module: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
                x = args[0]
                grouped = x.reshape(keys.shape[0], -1, x.shape[-1]).to(keys.dtype)
                change = (grouped @ keys.transpose(1, 2)) @ values
                return out + change.reshape(out.shape).to(out.dtype)

            return hook

        handles = []
        try:
            for name, (keys, values) in self.pairs.items():
                module = matrix_of(base, name, (values.shape[-1], keys.shape[-1])).module
                handles.append(module.register_forward_hook(hook_for(keys, values)))
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True, slots=True, eq=False)
class Dense(Change):
    """Whole matrices.

    Attributes:
        delta: Matrix → (groups, d_out, d_in).
    """

    delta: Mapping[str, Tensor]

    def applied(self, base: Base) -> AbstractContextManager[None]:
        """See `Change.applied`."""
        return with_delta(base, self.delta)
