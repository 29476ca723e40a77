"""What versions cost: `python -m benchmarks versions [--json] [--quick]`.

Probing from cached prefixes, activating, composing, adding to and taking out of many live edits,
finding a culprit, bytes on disk.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.editing import edits_of, live_sums, random_factors, random_grid, stream
from benchmarks.timing import Measure, compare, ratio, seconds, show
from mend_core.factors import (
    Accumulators,
    Composition,
    FactorStore,
    Grid,
    GridRows,
    VersionFiles,
    VersionStore,
    compose,
    materialise,
    weights_digest,
)
from mend_core.models import Base, Overlay, PrefixCache, encode_pairs, forward, load_base
from mend_core.probes import Outcome, find

_RIDGE = Composition("ridge", {"*": 1.0})


def probing(base: Base, repeats: int) -> list[Measure]:
    """Teacher-forced scores of 64 items: cached prefixes against full forwards; same scores."""
    encoded = encode_pairs(base, [(edit.prompt, edit.target) for edit in edits_of(64)])
    prefix = PrefixCache(base, min(matrix.block for matrix in base.matrices()))

    @torch.no_grad()
    def cached() -> torch.Tensor:
        return forward(base, encoded, prefix=prefix, keep=encoded.answer_mask)

    @torch.no_grad()
    def whole() -> torch.Tensor:
        logits = base.model(
            input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, use_cache=False
        ).logits
        kept: torch.Tensor = logits[encoded.answer_mask]
        return kept

    apart = float((cached().log_softmax(-1) - whole().log_softmax(-1)).abs().max())
    return [
        compare(
            "probe speed from cached prefixes : full forwards",
            cached,
            whole,
            goal=4.0,
            better=">=",
            repeats=repeats,
        ),
        ratio("largest difference of a log-probability", apart, goal=1e-5, detail="64 items"),
    ]


def activating(base: Base, repeats: int) -> Measure:
    """Moving a warm worker to another version against a memcpy of its matrices."""
    overlay = Overlay(base)
    generator = torch.Generator().manual_seed(0)
    versions = [
        {m.name: torch.randn(m.d_out, m.d_in, generator=generator) for m in base.matrices()}
        for _ in range(2)
    ]
    targets = {name: torch.empty_like(weight) for name, weight in versions[0].items()}
    turn = [0]

    def activate() -> None:
        for _ in range(10):
            turn[0] ^= 1
            overlay.activate(versions[turn[0]])

    def memcpy() -> None:
        for _ in range(10):
            turn[0] ^= 1
            for name, weight in versions[turn[0]].items():
                targets[name].copy_(weight)

    found = compare("activating a version : memcpy", activate, memcpy, goal=2.0, repeats=repeats)
    overlay.restore()
    return found


def composing(grid: Grid, repeats: int) -> Measure:
    """10,000 rows of one matrix against one matrix product of as many operations, in float64."""
    name = next(iter(grid.matrices))
    one = Grid({name: grid.of(name)})
    factors = random_factors(one, 2_500, rows=4)
    for factor in factors:
        assert factor.digest  # named when they were made; not part of composing
    rows, d, out = 10_000, one.of(name).d_in, one.of(name).d_out
    operations = 2 * rows * d * d + 2 * rows * d * out + d**3 // 3 + 2 * d * d * out
    left = torch.randn(operations // (2 * d * d), d, dtype=torch.float64)
    right = torch.randn(d, d, dtype=torch.float64)
    return compare(
        "composing 10,000 rows : matmul of as many operations",
        lambda: compose(_RIDGE, one, None, factors),
        lambda: left @ right,
        goal=2.0,
        repeats=repeats,
    )


def _version(base: Base, grid: Grid, factors: list[str], sums: Accumulators) -> VersionFiles:
    weights = materialise(base, compose(_RIDGE, grid, sums))
    return VersionFiles(
        base_digest=base.digest,
        editor_digest=grid.digest,
        composition=_RIDGE.to_dict(),
        factors=tuple(factors),
        accumulators=sums,
        weights_digest=weights_digest(weights),
    )


def undoing(base: Base, grid: Grid, root: Path) -> Measure:
    """`revert` of one of 10,000 edits: read parent and factor, take out, solve, write the child."""
    batch = random_factors(grid, 1, seed=9, name="one")
    sums = live_sums(grid, 10_000)
    sums.add(batch)
    store, versions = FactorStore(root / "factors"), VersionStore(root / "versions")
    gone = store.put_many(batch)[0]
    others = [f"sha256:{n:064x}" for n in range(10_000)]
    parent = versions.write(_version(base, grid, [*others, gone], sums))

    def revert() -> None:
        before = versions.load(parent, grid)
        after = before.accumulators
        assert after is not None
        after.remove([store.get(gone)])
        kept = [digest for digest in before.factors if digest != gone]
        child = versions.write(_version(base, grid, kept, after))
        versions.collect([parent], grace_seconds=-1)
        assert child != parent

    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)  # a wait, not work: all cores may help
    try:
        return seconds("revert one of 10,000 edits, disk included", revert, goal=2.0)
    finally:
        torch.set_num_threads(threads)


def disk(base: Base, grid: Grid, root: Path) -> Measure:
    """Bytes a version with a batch of 100 new edits takes, against its rows and sums."""
    batch: list[GridRows] = random_factors(grid, 100, seed=3, name="d")
    store, versions = FactorStore(root / "f"), VersionStore(root / "v")
    digests = store.put_many(batch)
    sums = live_sums(grid, 10_000)
    sums.add(batch)
    others = [f"sha256:{n:064x}" for n in range(10_000)]
    versions.write(_version(base, grid, [*others, *digests], sums))
    taken = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    needed = sum(factor.nbytes for factor in batch) + sums.nbytes
    return ratio(
        "disk per version : its new rows + sums",
        taken / needed,
        goal=1.1,
        detail=f"{taken / 2**20:.1f} MB, 10,100 edits live",
    )


def in_folder(work: Callable[[Path], Measure]) -> Measure:
    """Runs a measure that needs a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return work(Path(folder))


def bisecting() -> Measure:
    """Probe runs that find one culprit among 64, wherever it is: the worst of all places."""
    edits = tuple(f"e{n}" for n in range(64))
    runs = []
    for culprit in edits:

        def evaluate(subset: tuple[str, ...], culprit: str = culprit) -> Outcome:
            return Outcome.FAIL if culprit in subset else Outcome.PASS

        found = find(edits, evaluate)
        assert found.culprits == (culprit,)
        runs.append(found.runs)
    name = "probe runs to find one culprit among 64"
    return Measure(name, max(runs), min(runs), max(runs), 8.0, "<=", "runs", "no suspects named")


def adding(base: Base, grid: Grid, repeats: int) -> Measure:
    """A batch onto many live edits against the same batch onto few."""
    return compare(
        "a batch of 100 onto 10,000 edits : onto 100, from the sums",
        stream(base, grid, 10_000, forced=True),
        stream(base, grid, 100, forced=True),
        goal=1.05,
        repeats=repeats,
    )


PARTS: dict[str, Callable[[Base, Grid, int], list[Measure]]] = {
    "probing": lambda base, _grid, repeats: probing(base, repeats),
    "activating": lambda base, _grid, repeats: [activating(base, repeats)],
    "composing": lambda _base, grid, repeats: [composing(grid, min(repeats, 5))],
    "adding": lambda base, grid, repeats: [adding(base, grid, repeats)],
    "undoing": lambda base, grid, _: [in_folder(lambda root: undoing(base, grid, root))],
    "bisecting": lambda _base, _grid, _repeats: [bisecting()],
    "disk": lambda base, grid, _: [in_folder(lambda root: disk(base, grid, root))],
}
"""What can be measured alone, on a machine that is wanted by others too."""


def run(parts: Sequence[str] = tuple(PARTS), *, quick: bool) -> list[Measure]:
    """Measures on SmolLM2, in order."""
    repeats = 3 if quick else 9
    base = load_base("smollm2")
    grid = random_grid(base.matrices())
    return [measure for part in parts for measure in PARTS[part](base, grid, repeats)]


def main(argv: list[str] | None = None) -> int:
    """Runs and prints; exit code 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="mend bench versions", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument(
        "--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to measure"
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    return show("versions", run(options.only, quick=options.quick), as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
