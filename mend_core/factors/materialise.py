"""From ΔW to weights."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import torch
from torch import Tensor

from mend_core.digests import tensor_digest
from mend_core.factors.rows import Delta
from mend_core.models.base import Base
from mend_core.models.overlay import matrix_of


@torch.no_grad()
def materialise(base: Base, delta: Delta) -> dict[str, Tensor]:
    """Edited matrices: base + ΔW, added in float64 and rounded once to the base's dtype.

    The base's own weights must be in place.

    Returns:
        Full parameter name → (d_out, d_in), contiguous, on the base's device.

    Raises:
        NoSuchMatrix: A name is no editable matrix, or the shape differs.
    """
    weights: dict[str, Tensor] = {}
    for name in sorted(delta):
        matrix = matrix_of(base, name, tuple(delta[name].shape))
        # Adding to float64 widens the weight as it is read: no copy of it, same bits.
        exact = delta[name].cpu().double() + matrix.weight.cpu()  # (d_out, d_in)
        weights[name] = exact.to(base.dtype).contiguous().to(base.device)
    return weights


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """``sha256:…`` over materialised matrices in Linear orientation."""
    return tensor_digest(weights, {"kind": "mend.weights.1"})


def platform_tag() -> str:
    """What may change the last bits of a solve: machine, vector width, torch and its BLAS."""
    capability = torch.backends.cpu.get_cpu_capability().lower().replace(" ", "")
    mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]  # torch has no types here
    blas = "mkl" if mkl else "blas"
    machine = f"{platform.system().lower()}-{platform.machine()}-{capability}"
    return f"{machine}-torch{torch.__version__}-{blas}"
