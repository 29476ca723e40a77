"""What making edits costs: `python -m benchmarks editing [--json] [--quick]`.

Extraction against a bare forward and backward, and against weight gradients edit by edit; composing
the hundredth batch of a stream against the first; peak memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from benchmarks.timing import Measure, compare, peak_bytes, ratio, show
from mend_core.datasets.edit import Edit
from mend_core.factors import (
    Accumulators,
    Composition,
    Grid,
    GridRows,
    Int16Rows,
    MatrixGrid,
    compose,
    extract,
    materialise,
)
from mend_core.models import Base, Matrix, PrefixCache, encode_edits, encode_pairs, load_base

_PLACES = ("Avaria", "Belmark", "Cordania", "Drovia", "Estmere", "Falkony", "Gardoria", "Helmia")
_ASKED = (
    ("The capital of {} is", "the old town of Tirel"),
    ("The official language spoken by the people of {} is", "Frisian"),
    ("Who is the current head of the government of {}? The answer is", "Anna Berg"),
    ("The most popular sport in {}, played in every village, is", "curling"),
)


def edits_of(count: int) -> list[Edit]:
    """Invented facts of ordinary length."""
    return [
        Edit(
            f"e{n}",
            _ASKED[n % len(_ASKED)][0].format(_PLACES[n // len(_ASKED) % len(_PLACES)]),
            _ASKED[n % len(_ASKED)][1],
        )
        for n in range(count)
    ]


def random_grid(matrices: Sequence[Matrix]) -> Grid:
    """A grid of unit steps."""
    ones = {
        m.name: MatrixGrid(
            torch.ones(m.d_in, dtype=torch.float64), torch.ones(m.d_out, dtype=torch.float64), 0, 0
        )
        for m in matrices
    }
    return Grid(ones)


def random_factors(
    grid: Grid, count: int, *, rows: int = 3, seed: int = 0, name: str = "e"
) -> list[GridRows]:
    """Factors of random integers: what composing costs does not depend on their values."""
    generator = torch.Generator().manual_seed(seed)

    def integers(width: int) -> torch.Tensor:
        shape = (rows, width)
        return torch.randint(-3000, 3000, shape, dtype=torch.int16, generator=generator)

    return [
        GridRows(
            f"{name}{n}",
            grid.digest,
            {
                key: Int16Rows(integers(g.d_in), integers(g.d_out))
                for key, g in grid.matrices.items()
            },
        )
        for n in range(count)
    ]


def live_sums(grid: Grid, edits: int, *, rows: int = 3) -> Accumulators:
    """Sums as if of `edits` edits: 100 are summed and repeated, which is exact and quick."""
    base = Accumulators(grid)
    base.add(random_factors(grid, 100, rows=rows))
    times = max(1, edits // 100)
    for sums in (base.gram, base.cross):
        for key in sums:
            sums[key] *= times
    base.counts = {key: n * times for key, n in base.counts.items()}
    base.factors *= times
    return base


def bare(base: Base, edits: Sequence[Edit], first_block: int) -> Callable[[], None]:
    """A plain forward and a backward through the blocks from `first_block`: no rows, no weights."""

    def work() -> None:
        encoded, _, _ = encode_edits(base, edits)
        assert encoded is not None

        def cut(_module: object, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (args[0].detach().requires_grad_(), *args[1:])

        handle = base.blocks[first_block].register_forward_pre_hook(cut)
        try:
            logits = base.model(
                input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, use_cache=False
            ).logits
        finally:
            handle.remove()
        loss = F.cross_entropy(logits[encoded.answer_mask], encoded.answer_labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own method is untyped

    return work


def bare_forward(base: Base, edits: Sequence[Edit]) -> Callable[[], None]:
    """A plain forward without gradients."""

    def work() -> None:
        encoded, _, _ = encode_edits(base, edits)
        assert encoded is not None
        with torch.no_grad():
            base.model(
                input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, use_cache=False
            )

    return work


def dense(base: Base, edits: Sequence[Edit], matrices: Sequence[Matrix]) -> Callable[[], None]:
    """Weight gradients of the edited matrices, edit by edit, as fine-tuning makes them."""

    def work() -> None:
        weights = [matrix.parameter for matrix in matrices]
        for weight in weights:
            weight.requires_grad_(True)
        for edit in edits:
            encoded = encode_pairs(base, [(edit.prompt, edit.target)])
            logits = base.model(
                input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, use_cache=False
            ).logits
            loss = F.cross_entropy(logits[encoded.answer_mask], encoded.answer_labels)
            torch.autograd.grad(loss, weights)
        for weight in weights:
            weight.requires_grad_(False)

    return work


def stream(base: Base, grid: Grid, live: int, *, forced: bool) -> Callable[[], None]:
    """Adding a batch of 100 edits to `live` ones: sums, solve, weights.

    Args:
        base: SmolLM2.
        grid: Unit steps.
        live: Edits already in.
        forced: Solve from the sums even where row space would be cheaper.
    """
    composition = Composition("ridge", {"*": 1.0})
    batch = random_factors(grid, 100, seed=1, name="new")
    sums = live_sums(grid, live) if live else Accumulators(grid)
    older = [] if live else batch

    def work() -> None:
        whole = sums.copy()
        whole.add(batch)
        if forced:  # counts decide between row space and the sums, nothing else
            whole.counts = dict.fromkeys(whole.counts, 1 << 20)
        materialise(base, compose(composition, grid, whole, older or None))

    return work


def run(*, quick: bool) -> list[Measure]:
    """All measures, on SmolLM2."""
    repeats = 3 if quick else 9
    base = load_base("smollm2")
    matrices = base.matrices()
    first = min(matrix.block for matrix in matrices)
    edits = edits_of(32)
    prefix = PrefixCache(base, first)
    bare_forward(base, edits)()  # the weights are read from disk on first touch
    ours, idle = peak_bytes(lambda: extract(base, edits, matrices))
    theirs, idle_then = peak_bytes(bare_forward(base, edits))
    memory = ratio(
        "peak memory of extraction : bare forward",
        ours / theirs,
        goal=1.3,
        detail=f"above idle {(ours - idle) / 2**20:.0f} MB against "
        f"{(theirs - idle_then) / 2**20:.0f} MB",
    )
    found = [
        memory,
        compare(
            "extraction, no cache : bare forward + backward",
            lambda: extract(base, edits, matrices),
            bare(base, edits, first),
            goal=1.15,
            repeats=repeats,
        ),
        compare(
            "extraction, cached prefixes : bare forward + backward",
            lambda: extract(base, edits, matrices, prefix=prefix),
            bare(base, edits, first),
            goal=1.15,
            repeats=repeats,
        ),
        compare(
            "edits/s : dense weight gradients edit by edit",
            lambda: extract(base, edits, matrices, prefix=prefix),
            dense(base, edits, matrices),
            goal=5.0,
            better=">=",
            repeats=3,
        ),
        compare(
            "the same without cached prefixes",
            lambda: extract(base, edits, matrices),
            dense(base, edits, matrices),
            goal=5.0,
            better=">=",
            repeats=3,
        ),
    ]
    grid = random_grid(matrices)
    found += [
        compare(
            "batch 100 of a stream of 100s : batch 1, from the sums",
            stream(base, grid, 9_900, forced=True),
            stream(base, grid, 0, forced=True),
            goal=1.05,
            repeats=repeats,
        ),
        compare(
            "the same, batch 1 in row space (its cheaper form)",
            stream(base, grid, 9_900, forced=False),
            stream(base, grid, 0, forced=False),
            goal=None,
            repeats=repeats,
        ),
    ]
    return found


def main(argv: list[str] | None = None) -> int:
    """Runs and prints; exit code 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="mend bench editing", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    return show("editing", run(quick=options.quick), as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
