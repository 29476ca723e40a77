"""Families of architectures: where their blocks lie and which matrices are edited by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mend_core.models.base import Base, Matrix


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture.

    Attributes:
        name: transformers' ``model_type``.
        kind: ``causal``, ``seq2seq`` or ``classifier``.
        block_paths: Module lists of blocks, in the order they run.
        defaults: Patterns of the matrices edited by default (EDITING.md A.6, C, D).
    """

    name: str
    kind: str
    block_paths: tuple[str, ...]
    defaults: tuple[str, ...]


def find_matrices(base: Base, patterns: Sequence[str] | None) -> tuple[Matrix, ...]:
    """See `Base.matrices`."""
    raise NotImplementedError
