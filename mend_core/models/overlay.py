"""Putting a version's weights in place, and the base's back, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from mend_core.models.base import Base


class Overlay:
    """Exact swapping of edited matrices in a warm worker: one memcpy of the edited matrices.

    The base's own values of every matrix ever activated are kept until `restore`.
    """

    def __init__(self, base: Base) -> None:
        self.base = base

    def activate(self, weights: Mapping[str, Tensor]) -> None:
        """Puts these weights in place; matrices of an earlier activation not named go back to base.

        Args:
            weights: Full parameter name to (d_out, d_in), in the base's dtype.

        Raises:
            NoSuchMatrix: A name is no editable matrix or the shape differs.
        """
        raise NotImplementedError

    def restore(self) -> None:
        """Puts the base's exact bytes back."""
        raise NotImplementedError


@contextmanager
def overlay(base: Base, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with these weights for the length of the block; exact bytes back afterwards."""
    raise NotImplementedError
    yield


@contextmanager
def with_delta(base: Base, delta: Mapping[str, Tensor]) -> Iterator[None]:
    """Adds x·ΔWᵀ to the named modules' outputs for the length of the block, differentiably.

    For training editors: gradients reach `delta` (d_out, d_in); the weights stay untouched.
    """
    raise NotImplementedError
    yield
