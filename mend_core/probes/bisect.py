"""Finding the edits that break a batch with few probe runs (group testing).

The order of the edits is fixed once; the search looks for the shortest prefix that fails on top of
what is already known to be good. The last edit of that prefix is a culprit: with it the set fails,
without it it does not. It goes, the rest is asked again, and so on. One culprit among n takes
log2(n) runs to find and one to show that the rest passes: 7 of 64.

Nothing is assumed about culprits working alone: any failure that does not go away when edits are
*added* (two edits that only fail together, a drift budget that many small changes exhaust) leads to
a set that passes and to which no culprit could be added back. If adding an edit can also cure a
failure, the set returned as good is still one that was run and passed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from mend_core.errors import ProbeError
from mend_core.probes.decision import Outcome


@dataclass(frozen=True, slots=True)
class Search:
    """What a search found; every edit of the batch is in exactly one of the three.

    Attributes:
        culprits: Edits that must go for the rest to pass, in the batch's order.
        good: Edits shown to pass together: exactly this set was run (or is empty).
        undecided: Edits of a set the gate called inconclusive, or left when the runs were used up.
        runs: Probe runs used.
        exhausted: The runs were used up before the end.
    """

    culprits: tuple[str, ...]
    good: tuple[str, ...]
    undecided: tuple[str, ...]
    runs: int
    exhausted: bool = False


@dataclass
class _State:
    edits: Sequence[str]
    max_runs: int | None
    seen: dict[frozenset[str], Outcome] = field(default_factory=dict)

    def sorted(self, chosen: Sequence[str]) -> tuple[str, ...]:
        """In the batch's order, so that the same set is always asked the same way."""
        members = frozenset(chosen)
        return tuple(edit for edit in self.edits if edit in members)

    def ask(self, chosen: Sequence[str]) -> Generator[tuple[str, ...], Outcome, Outcome | None]:
        """The outcome of a set: known, or asked for; None where no run is left."""
        key = frozenset(chosen)
        if not key:
            return Outcome.PASS  # the parent itself, which passed when it was made
        if key not in self.seen:
            if self.max_runs is not None and len(self.seen) >= self.max_runs:
                return None
            self.seen[key] = yield self.sorted(chosen)
        return self.seen[key]

    def end(
        self, culprits: Sequence[str], good: Sequence[str], outcome: Outcome, left: Sequence[str]
    ) -> Search:
        passed = outcome is Outcome.PASS
        return Search(
            culprits=self.sorted(culprits),
            good=self.sorted(good) if passed else (),
            undecided=self.sorted(left if passed else (*good, *left)),
            runs=len(self.seen),
            exhausted=bool(left),
        )


def plan(
    edits: Sequence[str], *, suspects: Sequence[str] = (), max_runs: int | None = None
) -> Generator[tuple[str, ...], Outcome, Search]:
    """A search as a generator: yields a subset to evaluate, is sent its outcome, returns a Search.

    The whole batch is known to fail on top of a parent that passes; neither is asked. (Where the
    parent no longer passes the policy, judge its own results with `decide` first: then no edit is
    at fault.) An inconclusive subset counts as not failing: culprits are only those that turn
    "not shown to be harmful" into "fail"; whether the rest passes is said in the end.

    Args:
        edits: The batch's edits, each once.
        suspects: Those to look at first, most suspect first, as `GateDecision.suspects` gives them.
            Right suspects save runs; wrong ones cost one.
        max_runs: Give up after so many; None searches to the end. Many culprits take
            about log2(n) + 1 runs each.

    Raises:
        ProbeError: An edit is named twice, or there is none.
    """
    if not edits or len(set(edits)) != len(edits):
        raise ProbeError("a batch to search must name at least one edit, and each only once")
    state = _State(edits, max_runs)
    marked = [edit for edit in dict.fromkeys(suspects) if edit in set(edits)]
    clear = [edit for edit in edits if edit not in set(marked)]
    # Suspects go last: the first question is then whether the batch without them passes.
    rest, hint = [*clear, *reversed(marked)], len(clear)
    culprits: list[str] = []
    good: list[str] = []
    outcome = Outcome.PASS  # of `good`
    while rest:
        low, high = 0, len(rest)  # good + rest[:low] does not fail, good + rest[:high] does
        while high - low > 1:
            middle = hint if low < hint < high else (low + high) // 2
            hint = 0
            found = yield from state.ask([*good, *rest[:middle]])
            if found is None:
                return state.end(culprits, [*good, *rest[:low]], outcome, rest[low:])
            if found is Outcome.FAIL:
                high = middle
            else:
                low, outcome = middle, found
        culprits.append(rest[high - 1])
        good, rest = [*good, *rest[:low]], rest[high:]
        if not rest:
            break
        found = yield from state.ask([*good, *rest])
        if found is None:
            break
        if found is not Outcome.FAIL:
            good, rest, outcome = [*good, *rest], [], found
    return state.end(culprits, good, outcome, rest)


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
