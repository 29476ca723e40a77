"""Exact sums over rows: Gram and cross matrices that don't depend on order.

A product of two 16-bit integers is below 2**30 in size, and float64 holds integers exactly up to
2**53, so up to 2**23 rows sum without any rounding, whatever a BLAS does inside.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mend_core.digests import tensor_digest
from mend_core.errors import BatchError, EditorMismatch, StoreCorrupt, StoreMissing
from mend_core.factors.grid import Grid
from mend_core.factors.rows import GridRows
from mend_core.files import safetensors_bytes, write_atomic

MAX_ROWS = 1 << 23
"""Above this many rows a sum of 30-bit products may leave fp64's 53 exact bits."""

_CHUNK = 4096  # rows turned to float64 at a time; bounds memory, changes no bit


class Accumulators:
    """Σ u uᵀ and Σ u vᵀ per matrix, over integers, exact in float64.

    Whatever the order of adding, removing and merging, the same set gives the same bits.

    Attributes:
        grid: The grid of the rows.
        gram: Full parameter name → (d_in, d_in) float64 integers; empty when not `with_gram`.
        cross: Full parameter name → (d_in, d_out) float64 integers.
        counts: Full parameter name → number of rows.
        factors: Number of factors in the sums.
        with_gram: False for a ``sum`` composition, which needs the cross matrices only.
    """

    def __init__(self, grid: Grid, *, with_gram: bool = True) -> None:
        self.grid = grid
        self.with_gram = with_gram
        self.gram: dict[str, Tensor] = {}
        self.cross: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.factors = 0

    @property
    def grid_digest(self) -> str:
        """Digest of the grid."""
        return self.grid.digest

    def add(self, rows: Iterable[GridRows]) -> None:
        """Adds factors.

        Raises:
            EditorMismatch: Rows of another grid.
            BatchError: More rows than can be summed exactly.
        """
        self._apply(rows, 1)

    def remove(self, rows: Iterable[GridRows]) -> None:
        """Takes factors out, leaving exactly what was there before they were added.

        Raises:
            EditorMismatch: Rows of another grid.
            BatchError: More than there are.
        """
        self._apply(rows, -1)

    def _apply(self, rows: Iterable[GridRows], sign: int) -> None:
        # Gather first: one large product per matrix, and nothing changes when a factor is refused.
        keys: dict[str, list[Tensor]] = {}
        values: dict[str, list[Tensor]] = {}
        factors = 0
        for factor in rows:
            self.grid.check(factor)
            factors += 1
            for name, ints in factor.rows.items():
                keys.setdefault(name, []).append(ints.u)
                values.setdefault(name, []).append(ints.v)
        totals: dict[str, int] = {}
        for name, parts in keys.items():
            totals[name] = self.counts.get(name, 0) + sign * sum(len(part) for part in parts)
            if totals[name] > MAX_ROWS:
                raise BatchError(
                    f"{totals[name]} rows at {name}: above {MAX_ROWS} sums are no longer exact"
                )
        if min(totals.values(), default=0) < 0 or self.factors + sign * factors < 0:
            raise BatchError("more rows would be taken out than were put in")
        for name, parts in keys.items():
            self._sum(name, torch.cat(parts), torch.cat(values[name]), sign)
            self.counts[name] = totals[name]
        self.factors += sign * factors

    def _sum(self, name: str, keys: Tensor, values: Tensor, sign: int) -> None:
        scale = self.grid.of(name)
        if name not in self.cross:
            self.cross[name] = torch.zeros(scale.d_in, scale.d_out, dtype=torch.float64)
            if self.with_gram:
                self.gram[name] = torch.zeros(scale.d_in, scale.d_in, dtype=torch.float64)
        for start in range(0, len(keys), _CHUNK):
            u = keys[start : start + _CHUNK].double()  # (rows, d_in)
            # Fresh zeros plus a product can't leave a -0.0 behind, so digests compare.
            self.cross[name].addmm_(u.t(), values[start : start + _CHUNK].double(), alpha=sign)
            if self.with_gram:
                self.gram[name].addmm_(u.t(), u, alpha=sign)

    def merge(self, other: Accumulators) -> None:
        """Adds another set's sums (the sets must not overlap).

        Raises:
            EditorMismatch: Of another grid or kind.
            BatchError: More rows than can be summed exactly.
        """
        if other.grid_digest != self.grid_digest or other.with_gram != self.with_gram:
            raise EditorMismatch("accumulators of different grids or kinds cannot be merged")
        for name, count in other.counts.items():
            if self.counts.get(name, 0) + count > MAX_ROWS:
                raise BatchError(f"above {MAX_ROWS} rows at {name} sums are no longer exact")
        for name, count in other.counts.items():
            for mine, theirs in ((self.cross, other.cross), (self.gram, other.gram)):
                if name in theirs:
                    mine[name] = mine[name] + theirs[name] if name in mine else theirs[name].clone()
            self.counts[name] = self.counts.get(name, 0) + count
        self.factors += other.factors

    def copy(self) -> Accumulators:
        """An independent copy."""
        twin = Accumulators(self.grid, with_gram=self.with_gram)
        twin.merge(self)
        return twin

    def _live(self) -> Iterator[str]:
        """Matrices with rows; one emptied again is as if it had never been there."""
        return (name for name in sorted(self.counts) if self.counts[name])

    @property
    def nbytes(self) -> int:
        """Bytes of `tensors`."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def header(self) -> dict[str, object]:
        """What the digest covers beside the sums."""
        return {
            "kind": "mend.accumulators.1",
            "grid": self.grid_digest,
            "gram": self.with_gram,
            "factors": self.factors,
            "counts": {name: self.counts[name] for name in self._live()},
        }

    @property
    def digest(self) -> str:
        """``sha256:…`` over counts and sums."""
        return tensor_digest(self.tensors(), self.header())

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors for a file; Gram matrices as their upper triangle."""
        named: dict[str, Tensor] = {}
        for name in self._live():
            named[f"{name}|cross"] = self.cross[name]
            if self.with_gram:
                gram = self.gram[name]
                named[f"{name}|gram"] = gram[_triangle(gram.shape[0])]
        return named

    def packed(self) -> tuple[dict[str, Tensor], str, str]:
        """What a file holds: tensors, the header as text, and the digest."""
        tensors = self.tensors()
        digest = tensor_digest(tensors, self.header())
        return tensors, json.dumps({**self.header(), "digest": digest}, sort_keys=True), digest

    def save(self, path: Path) -> None:
        """Writes one safetensors file, atomically.

        Raises:
            StoreFull: No room left.
        """
        tensors, text, _ = self.packed()
        write_atomic(path, safetensors_bytes(tensors, text))

    @staticmethod
    def load(path: Path, grid: Grid) -> Accumulators:
        """Reads back and checks the digest.

        Raises:
            StoreMissing: No such file.
            StoreCorrupt: Not what its digest says.
            EditorMismatch: Of another grid.
        """
        tensors, header = read_file(path)
        if header.get("grid") != grid.digest:
            raise EditorMismatch(f"{path} was made on grid {header.get('grid')}, not {grid.digest}")
        sums = Accumulators(grid, with_gram=bool(header.get("gram")))
        try:
            sums.factors = int(header["factors"])
            sums.counts = {str(name): int(n) for name, n in header["counts"].items()}
            for name in sums.counts:
                sums.cross[name] = tensors[f"{name}|cross"]
                if sums.with_gram:
                    sums.gram[name] = _square(tensors[f"{name}|gram"], grid.of(name).d_in)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise StoreCorrupt(f"{path} is incomplete: {error}") from error
        return sums


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of an accumulators file, checked against its digest.

    Raises:
        StoreMissing: No such file.
        StoreCorrupt: Not what its digest says.
    """
    if not path.is_file():
        raise StoreMissing(f"{path} is missing; rebuild the version from its factors")
    try:
        with safe_open(path, framework="pt") as handle:
            header = json.loads((handle.metadata() or {})["mend"])
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - no mapping
        tensors.pop("empty", None)
        claimed = header.pop("digest")
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise StoreCorrupt(f"{path} cannot be read: {error}") from error
    if tensor_digest(tensors, header) != claimed:
        raise StoreCorrupt(f"{path} was altered: its content is not what its digest says")
    return tensors, header


_triangles: dict[int, tuple[Tensor, Tensor]] = {}


def _triangle(size: int) -> tuple[Tensor, Tensor]:
    """Indices of the upper triangle, kept per size."""
    if size not in _triangles:
        rows, columns = torch.triu_indices(size, size)
        _triangles[size] = (rows, columns)
    return _triangles[size]


def _square(packed: Tensor, size: int) -> Tensor:
    """A symmetric matrix from its upper triangle, (size, size)."""
    rows, columns = _triangle(size)
    upper = torch.zeros(size, size, dtype=packed.dtype)
    upper[rows, columns] = packed
    full = upper + upper.t()  # exact: one of each pair is zero, but on the diagonal
    full.diagonal().copy_(upper.diagonal())
    return full
