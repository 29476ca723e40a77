"""From a set of factors to ΔW: MEND's sum, or ridge least squares.

Ridge is solved in the smaller space: d x d (primal) from the accumulators, or n x n (dual) from the
rows (EDITING.md D.5: the dual form is faster and more accurate at small n). Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from mend_core.digests import json_digest, tensor_digest
from mend_core.errors import BatchError, EditorCorrupt, EmptyBatch
from mend_core.factors.accumulators import Accumulators
from mend_core.factors.grid import Grid, MatrixGrid
from mend_core.factors.rows import Delta, GridRows

Kind = Literal["sum", "ridge"]

EVERY = "*"
"""Key of `Composition.ridge` for matrices it does not name."""


@dataclass(frozen=True, eq=False)
class Composition:
    """How rows become ΔW. Saved inside the editor; its settings name every version.

    * ``sum``: ΔW = strength · Σ v uᵀ (MEND; the learned rate is inside v).
    * ``ridge``: ΔWᵀ = strength · (UᵀU + g(C + λI))⁻¹ UᵀV (MALMEN, UltraEdit), C the Gram matrix of
      protected keys, g = 1 + growth · n for n rows: the fuller a matrix, the more its rows would
      leak onto other keys.

    Attributes:
        kind: ``sum`` or ``ridge``.
        ridge: Full parameter name (or ``*`` for all others) → λ > 0. Ignored by ``sum``.
        protected: Full parameter name → C (d_in, d_in) float64 in the units of decoded keys, or
            absent. Ignored by ``sum``.
        strength: One factor on the whole ΔW.
        growth: Part of itself that C + λI gains with each row of a matrix, 0 or more. Ignored by
            ``sum``.
    """

    kind: Kind
    ridge: Mapping[str, float] = field(default_factory=dict)
    protected: Mapping[str, Tensor] = field(default_factory=dict)
    strength: float = 1.0
    growth: float = 0.0

    def __post_init__(self) -> None:
        """Refuses settings no set could be composed with (EditorCorrupt)."""
        if self.kind not in ("sum", "ridge"):
            raise EditorCorrupt(f"composition {self.kind!r} is unknown; use 'sum' or 'ridge'")
        if self.kind == "ridge" and not self.ridge:
            raise EditorCorrupt("a ridge composition needs λ > 0 for each matrix, or one for '*'")
        for name, value in self.ridge.items():
            if not (math.isfinite(value) and value > 0):
                raise EditorCorrupt(f"λ of {name} is {value}; it must be a positive number")
        if not math.isfinite(self.strength):
            raise EditorCorrupt(f"strength is {self.strength}; it must be a number")
        if not (math.isfinite(self.growth) and self.growth >= 0):
            raise EditorCorrupt(f"growth is {self.growth}; it must be a number from 0")

    def ridge_of(self, name: str) -> float:
        """λ of one matrix.

        Raises:
            EditorCorrupt: None is set.
        """
        value = self.ridge.get(name, self.ridge.get(EVERY))
        if value is None:
            raise EditorCorrupt(f"the composition has no λ for {name}")
        return value

    @cached_property
    def _settings(self) -> dict[str, Any]:
        ridge = self.kind == "ridge"
        # Left out where 0, so that the versions from before it keep their names.
        growth = {"growth": float(self.growth)} if ridge and self.growth else {}
        return growth | {
            "kind": self.kind,
            "ridge": {name: float(value) for name, value in sorted(self.ridge.items())}
            if ridge
            else {},
            "protected": {
                name: tensor_digest({"gram": gram.double()})
                for name, gram in sorted(self.protected.items())
            }
            if ridge
            else {},
            "strength": float(self.strength),
        }

    def to_dict(self) -> dict[str, Any]:
        """Canonical JSON settings; C by its digest."""
        return dict(self._settings)

    @property
    def digest(self) -> str:
        """``sha256:…`` over `to_dict`."""
        return json_digest(self.to_dict())

    def tensors(self) -> dict[str, Tensor]:
        """The protected Gram matrices for an editor file, named ``protected|<matrix>``."""
        return {f"protected|{name}": gram.double() for name, gram in self.protected.items()}

    @staticmethod
    def from_dict(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Composition:
        """Back from `to_dict` and `tensors`.

        Raises:
            EditorCorrupt: Settings or tensors missing or altered.
        """
        try:
            protected = {
                str(name): tensors[f"protected|{name}"].double() for name in settings["protected"]
            }
            made = Composition(
                kind=settings["kind"],
                ridge={str(name): float(value) for name, value in settings["ridge"].items()},
                protected=protected,
                strength=float(settings["strength"]),
                growth=float(settings.get("growth", 0.0)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EditorCorrupt(f"composition settings are incomplete: {error}") from error
        if made.to_dict() != dict(settings):
            raise EditorCorrupt("a protected Gram matrix was altered: its digest differs")
        return made

    def scaled(self, strength: float) -> Composition:
        """The same with another strength (a retry with a stronger step)."""
        return replace(self, strength=strength)

    def guard(self, rows: int) -> float:
        """g, by which C + λI is multiplied in a set with this many rows of a matrix."""
        return 1.0 + self.growth * rows

    def root_of(self, name: str) -> Tensor:
        """Lower Cholesky factor of C + λI, (d_in, d_in); kept, since it depends on nothing else."""
        if name not in self._roots:
            gram = self.protected[name].double().clone()
            gram.diagonal().add_(self.ridge_of(name))
            self._roots[name] = _cholesky(gram, name)
        return self._roots[name]

    @cached_property
    def _roots(self) -> dict[str, Tensor]:
        return {}


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one thread: the split of work between threads changes a solve's last bits."""
    threads = torch.get_num_threads()
    if threads == 1:  # also inside `compose`'s own threads, which must leave the setting alone
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def use_dual(composition: Composition, grid: MatrixGrid, name: str, rows: int) -> bool:
    """Whether n x n is the cheaper solve: a function of the set's size alone, by operations."""
    n, d, out = rows, grid.d_in, grid.d_out
    primal = d**3 / 3 + 2 * d * d * out
    dual = n * n * d + n**3 / 3 + 2 * n * n * out + 2 * n * d * out
    if name in composition.protected:
        dual += d * d * n + d * d * out
    return dual < primal


def needs_rows(composition: Composition, grid: Grid, counts: Mapping[str, int]) -> bool:
    """Whether `compose` would solve in row space for a set of this size and so needs its rows.

    Args:
        composition: The settings.
        grid: For the widths.
        counts: Full parameter name → number of rows in the set.
    """
    return composition.kind == "ridge" and any(
        use_dual(composition, grid.of(name), name, count) for name, count in counts.items() if count
    )


def compose(
    composition: Composition,
    grid: Grid,
    accumulators: Accumulators | None,
    rows: Iterable[GridRows] | None = None,
) -> Delta:
    """ΔW per matrix, float64, from a set of factors. Matrices without rows are left out.

    The same set gives the same bits on one platform, whatever the order and whoever computed the
    accumulators: the form of the solve (n x n or d x d) depends on the set alone and solves run on
    one thread.

    Args:
        composition: The settings.
        grid: What the integers mean.
        accumulators: Sums over the set, or None to compute them from `rows`.
        rows: The set's factors. May be None when `needs_rows` says so. A factor given twice counts
            once.

    Raises:
        EmptyBatch: Neither accumulators nor rows.
        BatchError: Rows are needed and not given, or the solve fails.
        EditorMismatch: Rows of another grid.
    """
    factors = _canonical(grid, rows) if rows is not None else None
    if accumulators is not None:
        counts = {name: n for name, n in accumulators.counts.items() if n}
    elif factors is not None:
        counts = _counts(factors)
    else:
        raise EmptyBatch("composing needs accumulators or rows")
    ridge = composition.kind == "ridge"
    dual = {
        name
        for name, n in counts.items()
        if ridge and use_dual(composition, grid.of(name), name, n)
    }
    if dual and factors is None:
        raise BatchError("this set is solved in row space: give its rows (see needs_rows)")
    if accumulators is None and len(dual) < len(counts):
        accumulators = Accumulators(grid, with_gram=ridge)
        accumulators.add(_without(factors or [], dual))

    def solve(name: str) -> Tensor:
        scale = grid.of(name)
        if name in dual:
            assert factors is not None
            change = _dual(composition, scale, name, factors)
        else:
            assert accumulators is not None
            change = _primal(composition, scale, name, accumulators)
        return change * composition.strength if composition.strength != 1.0 else change

    names = sorted(counts)
    return dict(zip(names, _side_by_side(solve, names), strict=True))


def _side_by_side(solve: Callable[[str], Tensor], names: Sequence[str]) -> list[Tensor]:
    """Solves matrices on as many threads as torch may use, each matrix on one.

    The answers are those of one thread in all; only the waiting is shorter.
    """
    workers = min(torch.get_num_threads(), len(names))
    if workers < 2:  # noqa: PLR2004 - nothing to share
        return [solve(name) for name in names]
    with (
        one_thread(),
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        return list(pool.map(solve, names))


def _canonical(grid: Grid, rows: Iterable[GridRows]) -> list[GridRows]:
    """The set in its own order: by digest, each once."""
    unique = {factor.digest: factor for factor in rows}
    for factor in unique.values():
        grid.check(factor)
    return [unique[digest] for digest in sorted(unique)]


def _counts(factors: Sequence[GridRows]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for factor in factors:
        for name, ints in factor.rows.items():
            counts[name] = counts.get(name, 0) + len(ints)
    return {name: n for name, n in counts.items() if n}


def _without(factors: Sequence[GridRows], names: set[str]) -> Iterator[GridRows]:
    """Factors less some matrices, whose sums nobody will use."""
    for factor in factors:
        kept = {name: ints for name, ints in factor.rows.items() if name not in names}
        yield GridRows(factor.edit_id, factor.grid_digest, kept, factor.clipped)


def _cholesky(matrix: Tensor, name: str) -> Tensor:
    with one_thread():
        root, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        raise BatchError(
            f"the ridge system of {name} is not positive definite (leading minor {int(info)}); "
            "raise λ, or check the protected Gram matrix"
        )
    lower: Tensor = root
    return lower


def _primal(
    composition: Composition, scale: MatrixGrid, name: str, accumulators: Accumulators
) -> Tensor:
    """ΔW (d_out, d_in) from the sums. Decoding them is exact: steps are powers of two."""
    key, value = scale.key_step, scale.value_step
    cross = accumulators.cross[name] * key[:, None]  # (d_in, d_out)
    cross *= value[None, :]
    if composition.kind == "sum":
        return cross.t().contiguous()
    system = accumulators.gram[name] * key[:, None]  # (d_in, d_in)
    system *= key[None, :]
    guard = composition.guard(accumulators.counts[name])
    if name in composition.protected:
        system.add_(composition.protected[name], alpha=guard)
    system.diagonal().add_(composition.ridge_of(name) * guard)
    root = _cholesky(system, name)
    with one_thread():
        solution: Tensor = torch.cholesky_solve(cross, root)
    return solution.t().contiguous()


def _dual(
    composition: Composition, scale: MatrixGrid, name: str, factors: Sequence[GridRows]
) -> Tensor:
    """ΔW (d_out, d_in) from the rows, by Woodbury.

    With A = g(C + λI) = LLᵀ and B = L⁻¹Uᵀ: ΔWᵀ = A⁻¹Uᵀ (UA⁻¹Uᵀ + I)⁻¹ V = L⁻ᵀ B (BᵀB + I)⁻¹ V.
    """
    keys, solved = dual_parts(composition, scale, name, factors)
    with one_thread():
        return solved.t() @ keys


def dual_parts(
    composition: Composition, scale: MatrixGrid, name: str, factors: Sequence[GridRows]
) -> tuple[Tensor, Tensor]:
    """The two thin sides of the dual solution, ΔW = solvedᵀ · keys: a LoRA's A and Bᵀ.

    Returns:
        keys (n, d_in) and solved (n, d_out), float64.
    """
    mine = [factor.rows[name] for factor in factors if name in factor.rows]
    u = torch.cat([ints.u for ints in mine]).double() * scale.key_step  # (n, d_in)
    v = torch.cat([ints.v for ints in mine]).double() * scale.value_step  # (n, d_out)
    guard = composition.guard(len(u))
    with one_thread():
        if name in composition.protected:
            root = composition.root_of(name)
            if guard != 1.0:
                root = root * math.sqrt(guard)
            half = torch.linalg.solve_triangular(root, u.t().contiguous(), upper=False)  # (d_in, n)
            system = half.t() @ half
            system.diagonal().add_(1.0)
            keys = torch.linalg.solve_triangular(root.t(), half, upper=True).t().contiguous()
        else:
            system = u @ u.t()
            system.diagonal().add_(composition.ridge_of(name) * guard)
            keys = u
        solved = torch.cholesky_solve(v, _cholesky(system, name))
    return keys, solved
