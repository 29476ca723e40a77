"""Finding the edits that break a batch with few probe runs (group testing)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from mend_core.probes.gate import Outcome


@dataclass(frozen=True, slots=True)
class Search:
    """What a search found.

    Attributes:
        culprits: Edits that must go for the rest to pass, in the batch's order.
        good: The rest; the subset of `edits` last shown to pass (empty if none was).
        undecided: Edits left in subsets the gate called inconclusive.
        runs: Probe runs used.
    """

    culprits: tuple[str, ...]
    good: tuple[str, ...]
    undecided: tuple[str, ...]
    runs: int


def plan(
    edits: Sequence[str], *, suspects: Sequence[str] = (), max_runs: int | None = None
) -> Generator[tuple[str, ...], Outcome, Search]:
    """A search as a generator: yields a subset to evaluate, is sent its outcome, returns a Search.

    The whole batch is known to fail; it is not asked again.
    """
    raise NotImplementedError


def find(
    edits: Sequence[str],
    evaluate: Callable[[tuple[str, ...]], Outcome],
    *,
    suspects: Sequence[str] = (),
    max_runs: int | None = None,
) -> Search:
    """Drive `plan` with a function that evaluates a subset of edits."""
    steps = plan(edits, suspects=suspects, max_runs=max_runs)
    try:
        subset = next(steps)
        while True:
            subset = steps.send(evaluate(subset))
    except StopIteration as stop:
        found: Search = stop.value
        return found
