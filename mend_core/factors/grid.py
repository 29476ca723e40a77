"""The 16-bit grid: what makes sums of rows exact (DESIGN 2.2, "Exact sums").

A number is integer x scale[dimension] x 2**exponent with a 16-bit integer. Scales are powers of two
near each dimension's standard deviation, so outlier dimensions don't eat the range, and turning
integers back into numbers, or sums of products back into sums, never rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mend_core.digests import tensor_digest
from mend_core.errors import EditorCorrupt, EditorMismatch, EmptyBatch, NonFinite
from mend_core.factors.rows import FactorRows, GridRows, Int16Rows, Rows

LIMIT = 32767
"""Largest integer of the grid; -32768 is not used, so that the grid is symmetric."""


@dataclass(frozen=True, slots=True, eq=False)
class MatrixGrid:
    """One matrix's grid: number = integer x scale[dimension] x 2**exponent.

    Attributes:
        key_scale: (d_in,) float64, powers of two.
        value_scale: (d_out,) float64, powers of two.
        key_exponent: Power of two of one key step.
        value_exponent: Power of two of one value step.
    """

    key_scale: Tensor
    value_scale: Tensor
    key_exponent: int
    value_exponent: int

    @property
    def d_in(self) -> int:
        """Width of keys."""
        return self.key_scale.shape[0]

    @property
    def d_out(self) -> int:
        """Width of values."""
        return self.value_scale.shape[0]

    @property
    def key_step(self) -> Tensor:
        """Size of one integer step per key dimension, (d_in,) float64."""
        return self.key_scale * 2.0**self.key_exponent

    @property
    def value_step(self) -> Tensor:
        """Size of one integer step per value dimension, (d_out,) float64."""
        return self.value_scale * 2.0**self.value_exponent


def _power_of_two(scale: Tensor) -> Tensor:
    """The nearest powers of two; dimensions that never move get the typical one. (d,) float64."""
    scale = scale.detach().cpu().double()
    moving = scale[(scale > 0) & scale.isfinite()]
    if moving.numel() == 0:
        return torch.ones_like(scale)
    typical = moving.median()
    # A dimension far quieter than the rest would otherwise make ordinary noise overflow.
    floor = typical * 2.0**-8
    safe = torch.where((scale > floor) & scale.isfinite(), scale, floor)
    return torch.exp2(torch.log2(safe).round())


def _exponent(values: Tensor, scale: Tensor, headroom: float) -> int:
    """Smallest power of two for which headroom x the largest value fits."""
    largest = float((values.double().abs() / scale).max()) if values.numel() else 0.0
    if largest == 0.0 or not math.isfinite(largest):
        largest = 1.0
    return math.ceil(math.log2(largest * headroom / LIMIT))


def _to_grid(values: Tensor, step: Tensor) -> tuple[Tensor, int]:
    """Rounds to integers, saturating: int16 of the same shape, and how many did not fit."""
    steps = (values.detach().cpu().double() / step).round()
    clipped = int((steps.abs() > LIMIT).sum())
    return steps.clamp(-LIMIT, LIMIT).to(torch.int16), clipped


@dataclass(frozen=True, eq=False)
class Grid:
    """Per-matrix grids; part of an editor.

    Attributes:
        matrices: Full parameter name → grid.
    """

    matrices: Mapping[str, MatrixGrid]

    @cached_property
    def digest(self) -> str:
        """``sha256:…`` over scales and exponents."""
        return tensor_digest(self.tensors(), {"kind": "mend.grid.1"})

    @staticmethod
    def calibrate(
        samples: Sequence[FactorRows],
        *,
        key_std: Mapping[str, Tensor] | None = None,
        value_std: Mapping[str, Tensor] | None = None,
        headroom: float = 4.0,
    ) -> Grid:
        """Fits a grid to sample factors.

        Args:
            samples: Factors of typical edits.
            key_std: Per-dimension scale of keys at the base, (d_in,); default: of the samples.
            value_std: Per-dimension scale of values, (d_out,); default: of the samples.
            headroom: How much larger than the largest sample a number may be before it saturates.

        Raises:
            EmptyBatch: No samples.
        """
        names = sorted({name for sample in samples for name in sample.rows})
        if not names:
            raise EmptyBatch("a grid needs at least one sample factor")
        matrices: dict[str, MatrixGrid] = {}
        for name in names:
            mine = [sample.rows[name] for sample in samples if name in sample.rows]
            keys = torch.cat([rows.u.detach().cpu() for rows in mine])
            values = torch.cat([rows.v.detach().cpu() for rows in mine])
            key_scale = _power_of_two(
                key_std[name] if key_std else keys.double().square().mean(0).sqrt()
            )
            value_scale = _power_of_two(
                value_std[name] if value_std else values.double().square().mean(0).sqrt()
            )
            matrices[name] = MatrixGrid(
                key_scale,
                value_scale,
                _exponent(keys, key_scale, headroom),
                _exponent(values, value_scale, headroom),
            )
        return Grid(matrices)

    def of(self, name: str) -> MatrixGrid:
        """One matrix's grid.

        Raises:
            EditorMismatch: The grid has none.
        """
        if name not in self.matrices:
            raise EditorMismatch(f"the editor's grid has no scale for {name}: it edits others")
        return self.matrices[name]

    def encode(self, factor: FactorRows) -> GridRows:
        """Rounds to the grid, saturating; ``.clipped`` counts what did not fit.

        Raises:
            NonFinite: NaN or Inf in the rows.
            EditorMismatch: A matrix the grid has no scale for, or other widths.
        """
        encoded: dict[str, Int16Rows] = {}
        clipped = 0
        for name in sorted(factor.rows):
            rows = factor.rows[name]
            scale = self.of(name)
            if rows.u.shape[1:] != (scale.d_in,) or rows.v.shape != (len(rows), scale.d_out):
                raise EditorMismatch(
                    f"rows of {name} are {tuple(rows.u.shape)} and {tuple(rows.v.shape)}, the "
                    f"editor's grid is for widths {scale.d_in} and {scale.d_out}"
                )
            if not bool(rows.u.isfinite().all() & rows.v.isfinite().all()):
                raise NonFinite(factor.edit_id, f"NaN or Inf in its rows at {name}")
            u, over_u = _to_grid(rows.u, scale.key_step)
            v, over_v = _to_grid(rows.v, scale.value_step)
            encoded[name] = Int16Rows(u, v)
            clipped += over_u + over_v
        return GridRows(factor.edit_id, self.digest, encoded, clipped)

    def decode(self, rows: GridRows) -> FactorRows:
        """The real numbers the integers stand for, float32 (exact: 16 bits and powers of two).

        Raises:
            EditorMismatch: Rows of another grid.
        """
        self.check(rows)
        return FactorRows(
            rows.edit_id,
            {
                name: Rows(
                    (ints.u.double() * self.of(name).key_step).float(),
                    (ints.v.double() * self.of(name).value_step).float(),
                )
                for name, ints in rows.rows.items()
            },
        )

    def check(self, rows: GridRows) -> None:
        """Refuses rows of another grid.

        Raises:
            EditorMismatch: They are.
        """
        if rows.grid_digest != self.digest:
            raise EditorMismatch(
                f"the factor of edit {rows.edit_id} was made on grid {rows.grid_digest}, this "
                f"editor's is {self.digest}: extract it again with this editor"
            )

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors for an editor file: ``grid|<matrix>|key_scale`` and so on."""
        named: dict[str, Tensor] = {}
        for name, scale in self.matrices.items():
            named[f"grid|{name}|key_scale"] = scale.key_scale
            named[f"grid|{name}|value_scale"] = scale.value_scale
            named[f"grid|{name}|exponents"] = torch.tensor(
                [scale.key_exponent, scale.value_exponent], dtype=torch.int64
            )
        return named

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Grid:
        """Back from `tensors`; other names are ignored.

        Raises:
            EditorCorrupt: Parts of a matrix's grid are missing, or there is no grid.
        """
        names = sorted(
            {key.split("|")[1] for key in tensors if key.startswith("grid|") and key.count("|") > 1}
        )
        if not names:
            raise EditorCorrupt("the editor file holds no grid; make the editor again")
        matrices: dict[str, MatrixGrid] = {}
        for name in names:
            try:
                exponents = tensors[f"grid|{name}|exponents"].tolist()
                key_scale = tensors[f"grid|{name}|key_scale"].double()
                value_scale = tensors[f"grid|{name}|value_scale"].double()
                key_exponent, value_exponent = (int(number) for number in exponents)
            except (KeyError, ValueError, TypeError) as error:
                raise EditorCorrupt(f"the grid of {name} is incomplete in this file") from error
            matrices[name] = MatrixGrid(key_scale, value_scale, key_exponent, value_exponent)
        return Grid(matrices)
