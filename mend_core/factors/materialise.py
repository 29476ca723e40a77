"""From ΔW to weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mend_core.factors.rows import Delta
from mend_core.models.base import Base


def materialise(base: Base, delta: Delta) -> dict[str, Tensor]:
    """Edited matrices: base + ΔW, added in float64 and rounded once to the base's dtype.

    The base's own weights must be in place.

    Returns:
        Full parameter name → (d_out, d_in), contiguous, on the base's device.

    Raises:
        NoSuchMatrix: A name is no editable matrix, or the shape differs.
    """
    raise NotImplementedError


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """``sha256:…`` over materialised matrices in Linear orientation."""
    raise NotImplementedError


def platform_tag() -> str:
    """What may change the last bits of a solve: machine, torch version, BLAS, vector width."""
    raise NotImplementedError
