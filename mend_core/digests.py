"""Digests: what a thing is named by.

A digest is over content, never over a file: safetensors bytes are not deterministic with more than
one metadata key, and a re-saved model is still the same model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rfc8785
import torch
from torch import Tensor

PREFIX = "sha256:"


def bytes_digest(data: bytes) -> str:
    """Digest of raw bytes, as ``sha256:<hex>``."""
    return PREFIX + hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, bare hex: what `sha256sum` prints."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """Digest of a JSON value in canonical form (RFC 8785): key order and spacing don't matter."""
    return bytes_digest(rfc8785.dumps(value))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's elements as little-endian bytes in row-major order.

    Args:
        tensor: Any shape, any dtype; moved to the CPU and made contiguous if it is not.
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]  # numpy arrays are buffers


def update_with_tensor(hasher: Any, name: str, tensor: Tensor) -> None:
    """Feeds one named tensor to a hasher: name, dtype, shape, then its bytes."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = "x".join(str(size) for size in tensor.shape)
    hasher.update(f"{name}|{dtype}|{shape}|".encode())
    hasher.update(tensor_bytes(tensor))


def tensor_digest(tensors: Mapping[str, Tensor], header: Any = None) -> str:
    """Digest of named tensors: sorted by name, each as name | dtype | shape | bytes.

    Args:
        tensors: Name to tensor.
        header: A JSON value hashed before the tensors, or None.
    """
    hasher = hashlib.sha256()
    if header is not None:
        hasher.update(rfc8785.dumps(header))
    for name in sorted(tensors):
        update_with_tensor(hasher, name, tensors[name])
    return PREFIX + hasher.hexdigest()


def hex_of(digest: str) -> str:
    """The hexadecimal part of a digest, for file names.

    Raises:
        ValueError: Not a digest of ours.
    """
    body = digest.removeprefix(PREFIX)
    if not digest.startswith(PREFIX) or len(body) != hashlib.sha256().digest_size * 2:
        raise ValueError(f"not a digest: {digest!r}")
    int(body, 16)
    return body
