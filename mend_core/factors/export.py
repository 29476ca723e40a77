"""Handing a version to a server: merged weights, or a LoRA adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mend_core.factors.compose import Composition
from mend_core.factors.grid import Grid
from mend_core.factors.rows import GridRows
from mend_core.models.base import Base


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written.

    Attributes:
        folder: Where.
        rank: LoRA rank.
        exact_rank: Rank an exact adapter needs.
        relative_error: ‖ΔW - BA‖ / ‖ΔW‖ (Frobenius), the worst matrix.
    """

    folder: str
    rank: int
    exact_rank: int
    relative_error: float


def export_merged(base: Base, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Writes a Hugging Face folder with these weights, bitwise equal when loaded.

    Raises:
        StoreFull: No room left; nothing half-written remains.
        StoreError: The folder exists and is not empty.
    """
    raise NotImplementedError


def export_peft(
    base: Base,
    grid: Grid,
    composition: Composition,
    rows: Iterable[GridRows],
    folder: Path,
    *,
    max_rank: int | None = None,
) -> ExportReport:
    """Writes a PEFT LoRA adapter: rank = rows, no SVD unless truncated.

    Raises:
        StoreFull: No room left; nothing half-written remains.
        StoreError: The folder exists and is not empty.
    """
    raise NotImplementedError
