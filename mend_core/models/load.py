"""Loading a base: the shipped SmolLM2, a folder, or a hub id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from mend_core.models.base import Base

Progress = Callable[[str, float], None]


def load_base(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    expected_digest: str | None = None,
    progress: Progress | None = None,
) -> Base:
    """Loads a base model, frozen and in eval mode.

    Args:
        source: ``smollm2`` for the shipped SmolLM2-135M-Instruct, a Hugging Face folder, or a hub
            id.
        device: Where to put it.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        expected_digest: Refuse a model whose tensors have another digest.
        progress: Called with a short text and a fraction in [0, 1].

    Raises:
        ModelNotFound: No such folder, hub id or shipped model.
        ModelBroken: Files missing, truncated or unreadable; or not safetensors.
        ModelUnsupported: An architecture with no family.
        ModelMismatch: The digest is not `expected_digest`.
    """
    raise NotImplementedError


def base_digest(source: str | Path) -> str:
    """Digest over a checkpoint's tensors, ``sha256:…``; cached by the files' size and time.

    Raises:
        ModelNotFound: No such model.
        ModelBroken: A file cannot be read.
    """
    raise NotImplementedError
