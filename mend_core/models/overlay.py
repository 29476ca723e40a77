"""Putting a version's weights in place, and the base's back, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mend_core.errors import NoSuchMatrix
from mend_core.models.base import Base, Matrix
from mend_core.safepoints import set_aside


def matrix_of(base: Base, name: str, shape: tuple[int, ...] | None = None) -> Matrix:
    """The matrix of a full parameter name.

    Raises:
        NoSuchMatrix: No editable matrix has this name, or its shape differs.
    """
    matrix = base.by_name.get(name)
    if matrix is None:
        raise NoSuchMatrix(f"{base.source} has no editable matrix {name!r}")
    wanted = (matrix.d_out, matrix.d_in)
    if shape is not None and tuple(shape) != wanted:
        raise NoSuchMatrix(
            f"{name} of {base.source} is {wanted[0]} x {wanted[1]}, the given one is "
            f"{' x '.join(map(str, shape))}: it was made for another model"
        )
    return matrix


class Overlay:
    """Exact swapping of edited matrices in a warm worker: one memcpy of the edited matrices.

    The base's own values of every matrix ever activated are kept until the object goes, so moving
    from version to version never reads the disk.

    Attributes:
        base: The model.
        active: Names of the matrices that now differ from the base.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self.active: frozenset[str] = frozenset()
        self._weights: Mapping[str, Tensor] = {}
        self._originals: dict[str, Tensor] = {}

    @torch.no_grad()
    def activate(self, weights: Mapping[str, Tensor]) -> None:
        """Puts these weights in place; matrices of an earlier activation not named go back to base.

        Args:
            weights: Full parameter name to (d_out, d_in), in the base's dtype.

        Raises:
            NoSuchMatrix: A name is no editable matrix or the shape differs; nothing changed then.
        """
        found = {
            name: matrix_of(self.base, name, tuple(weight.shape))
            for name, weight in weights.items()
        }
        for name in self.active - weights.keys():
            matrix_of(self.base, name).parameter.data.copy_(self._originals[name])
        for name, matrix in found.items():
            parameter = matrix.parameter
            if name not in self._originals:
                self._originals[name] = parameter.data.clone()
            weight = weights[name]
            parameter.data.copy_(weight.t() if matrix.transposed else weight)
        self.active = frozenset(weights)
        self._weights = weights

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the base's exact bytes back."""
        for name in self.active:
            matrix_of(self.base, name).parameter.data.copy_(self._originals[name])
        self.active = frozenset()
        self._weights = {}

    @contextmanager
    def in_place(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """These weights for the length of the block, the base's before and after.

        What runs at a safe point inside finds the base's own weights.

        Raises:
            NoSuchMatrix: See `activate`.
        """
        try:
            self.activate(weights)
            with set_aside(self._aside):
                yield
        finally:
            self.restore()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """The base's bytes for the length of the block, then what was in place again."""
        weights = self._weights
        self.restore()
        try:
            yield
        finally:
            self.activate(weights)


@contextmanager
def overlay(base: Base, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with these weights for the length of the block; exact bytes back afterwards."""
    with Overlay(base).in_place(weights):
        yield


@contextmanager
def with_delta(base: Base, delta: Mapping[str, Tensor]) -> Iterator[None]:
    """Adds x·ΔWᵀ to the named modules' outputs for the length of the block, differentiably.

    For training editors: gradients reach `delta` (d_out, d_in); the weights stay untouched.

    Raises:
        NoSuchMatrix: A name is no editable matrix or the shape differs.
    """

    def adding(change: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            extra: Tensor = args[0] @ change.to(args[0].dtype).t()
            return output + extra

        return hook

    handles = []
    try:
        for name, change in delta.items():
            module = matrix_of(base, name, tuple(change.shape)).module
            handles.append(module.register_forward_hook(adding(change)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def with_pairs(base: Base, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """As `with_delta` with ΔW = Σ value keyᵀ, never formed, and one ΔW for each group of sequences.

    Args:
        base: The model.
        pairs: Full parameter name to keys (groups, rows, d_in) and values (groups, rows, d_out).
            A batch run inside holds the groups one after the other, equally many sequences each.

    Raises:
        NoSuchMatrix: A name is no editable matrix or the shape differs.
    """

    def adding(
        keys: Tensor, values: Tensor
    ) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            x = args[0]
            grouped = x.reshape(keys.shape[0], -1, x.shape[-1]).to(keys.dtype)
            extra: Tensor = (grouped @ keys.transpose(1, 2)) @ values
            return output + extra.reshape(output.shape).to(output.dtype)

        return hook

    handles = []
    try:
        for name, (keys, values) in pairs.items():
            module = matrix_of(base, name, (values.shape[-1], keys.shape[-1])).module
            handles.append(module.register_forward_hook(adding(keys, values)))
        yield
    finally:
        for handle in handles:
            handle.remove()
