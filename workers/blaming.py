"""Find who is to blame where the gate says no, with a bounded number of probe runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mend_core.datasets.edit import Edit
from mend_core.factors import GridRows
from mend_core.probes import GateDecision, Outcome, find
from mend_core.safepoints import safe_point
from workers import faults
from workers.charges import Broken, Reason, Run, Why, broken_by, complaints, evidence
from workers.proving import Judge, Verdict
from workers.runtime import WarmModel

STEP_GROWTH = 1.5
"""How much stronger the step of an edit that did not take becomes with each try."""

STEP_TRIES = 3
"""Stronger steps tried before an edit that does not take is quarantined."""

MAX_PROBE_RUNS = 24
"""Probe runs spent on one failed version; one culprit among 512 edits takes ten."""

TAKING = frozenset({"hard.own_prompt", "success"})
"""Checks that say only that edits did not take, which a stronger step may cure."""


@dataclass(frozen=True, slots=True)
class Blame:
    """What to do with a batch whose version failed its gate.

    Attributes:
        culprits: Edit id → evidence; these are quarantined.
        stronger: Edit id → factor with a stronger step that took; these replace the stored ones.
        runs: Probe runs it took to find out.
    """

    culprits: Mapping[str, dict[str, Any]]
    stronger: Mapping[str, GridRows]
    runs: int


def strengthen(warm: WarmModel, factor: GridRows, times: float) -> GridRows:
    """The same factor with its values scaled: a stronger step without a new gradient."""
    real = warm.editor.grid.decode(factor)
    rows = {name: replace(r, v=r.v * times) for name, r in real.rows.items()}
    return warm.editor.grid.encode(replace(real, rows=rows))


def only_taking(decision: GateDecision) -> bool:
    """Whether nothing failed but that edits did not take."""
    return all(c.name in TAKING for c in decision.checks if c.outcome is Outcome.FAIL)


def net_loss(decision: GateDecision) -> float:
    """Sum of the net losses of all paired checks: how much else was broken."""
    pairs = ("parent/", "drift/")
    return sum(c.observed or 0.0 for c in decision.checks if c.name.startswith(pairs))


def worse(after: GateDecision, before: GateDecision) -> bool:
    """Whether stronger steps did harm: what they are for got no better, or something else broke."""
    missed, missed_before = len(after.not_taken), len(before.not_taken)
    if missed > missed_before or not only_taking(after):
        return True
    return missed == missed_before and net_loss(after) > net_loss(before)


Set = frozenset[tuple[str, str]]
"""A set of edits as probe runs know it: each with the digest of its factor."""


@dataclass(eq=False)
class _Case:
    """A failed batch under investigation: what is still in it, with which factors."""

    judge: Judge
    edits: Mapping[str, Edit]
    factors: Mapping[str, str]
    failed: Verdict
    max_runs: int
    now: dict[str, str] = field(init=False)
    stronger: dict[str, GridRows] = field(default_factory=dict)
    seen: dict[Set, Run] = field(default_factory=dict)
    tuned: dict[Set, Run] = field(default_factory=dict)
    culprits: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: int = 0

    def __post_init__(self) -> None:
        self.now = dict(self.factors)
        self.seen[frozenset(self.factors.items())] = Run.of(self.failed)

    def left(self) -> int:
        return self.max_runs - self.runs

    def run(self, factors: Mapping[str, str], *, tuning: bool = False) -> GateDecision:
        """One probe run on cached factors; answers are not complete, verdicts are.

        Args:
            factors: Factor digest by edit id.
            tuning: A setting is chosen by what comes out: canaries are not asked.
        """
        faults.point("mid-bisect")
        safe_point()
        self.runs += 1
        built = self.judge.candidate(list(factors.values()))
        edits = [self.edits[edit_id] for edit_id in factors]
        began = self.failed.decision
        found = self.judge.judge(built, edits, complete=False, tuning=tuning, after=began)
        kept = self.tuned if tuning else self.seen
        kept[frozenset(factors.items())] = Run.of(found)
        return found.decision

    def convict(self, edit_id: str, reason: Reason, broken: Broken | None = None) -> None:
        self.culprits[edit_id] = evidence(self.failed, edit_id, reason, broken)
        self.stronger.pop(edit_id, None)
        self.now.pop(edit_id, None)

    def pair(self, edit_id: str) -> tuple[Outcome | None, Broken | None]:
        """What the gate said without an edit, and what that edit broke; None where not measured.

        It takes two runs that differ by that edit alone, of which only the one with it fails. A
        search ends with such a pair for each culprit it finds.
        """
        one = (edit_id, self.now[edit_id])
        for chosen, run in self.seen.items():
            if one not in chosen or run.decision.outcome is not Outcome.FAIL:
                continue
            if len(chosen) == 1:
                continue  # it fails alone: see `alone`
            without = self.seen.get(chosen - {one})
            if without is not None and without.decision.outcome is not Outcome.FAIL:
                return without.decision.outcome, broken_by((edit_id,), run, without)
        return None, None

    def alone(self, edit_id: str) -> Run | None:
        """The run of an edit all by itself, where there was one and it failed."""
        run = self.seen.get(frozenset({(edit_id, self.now[edit_id])}))
        return run if run is not None and run.decision.outcome is Outcome.FAIL else None

    def broken_by_group(self, group: Sequence[str]) -> Broken | None:
        """What edits broke together, where the rest was run with and without them."""
        rest = frozenset((e, f) for e, f in self.now.items() if e not in group)
        whole = self.seen.get(rest | {(e, self.factors[e]) for e in group})
        without = self.seen.get(rest)
        if whole is None or (rest and without is None):
            return None
        return broken_by(group, whole, without)

    def try_stronger(self) -> GateDecision:
        """Stronger steps for those that did not take; the last decision worth keeping."""
        decision = self.judge.without_canaries(self.failed)
        warm = self.judge.warm
        for attempt in range(1, STEP_TRIES + 1):
            weak = [e for e in decision.not_taken if e in self.now]
            if not weak or not self.left():
                break
            steps = {
                edit_id: strengthen(
                    warm, warm.factors.get(self.factors[edit_id]), STEP_GROWTH**attempt
                )
                for edit_id in weak
            }
            tried = self.now | {e: warm.factors.put(step) for e, step in steps.items()}
            after = self.run(tried, tuning=True)
            if after.outcome is not Outcome.PASS and worse(after, decision):
                break
            self.now, decision = tried, after
            self.stronger |= steps
            if after.outcome is Outcome.PASS:
                break
        return decision

    def set_aside_weak(
        self, weak: Sequence[str], *, strongest: float | None
    ) -> GateDecision | None:
        """Set aside edits that did not take, where the rest does not fail without them.

        Args:
            weak: Them.
            strongest: The strongest step they were given in vain; they go in any case then.

        Returns:
            What the gate says of the rest; None where there is no rest or no run left.
        """
        rest = {e: f for e, f in self.now.items() if e not in weak}
        decision = self.run(rest) if rest and self.left() else None
        fails = decision is not None and decision.outcome is Outcome.FAIL
        if strongest is not None or not rest or (decision is not None and not fails):
            without = None if decision is None else decision.outcome
            broken = self.broken_by_group(weak)
            for edit_id in weak:
                reason = Reason(Why.GROUP, others=len(weak) - 1, without=without, rest=bool(rest))
                if strongest is not None:
                    reason = Reason(Why.NOT_TAKEN, strongest=strongest, without=without)
                self.convict(edit_id, reason, broken)
        self.now = rest
        return decision

    def search(self, decision: GateDecision) -> None:
        """Bisect what is left, which fails for a reason that stronger steps do not cure."""
        whole = frozenset(self.now.items())
        if whole in self.tuned:
            self.seen.setdefault(whole, self.tuned[whole])
        found = find(
            tuple(self.now),
            lambda subset: self.run({e: self.now[e] for e in subset}).outcome,
            suspects=decision.suspects(),
            max_runs=self.left(),
        )
        # Looked up for all before any is convicted: a conviction changes what is there now.
        told = {edit_id: self._found(edit_id) for edit_id in found.culprits}
        for edit_id, (reason, broken) in told.items():
            self.convict(edit_id, reason, broken)
        if not found.exhausted:
            return
        undecided = set(found.undecided)
        ranked = [e for e in decision.suspects() if e in undecided]
        if not ranked and not found.culprits:
            ranked = list(found.undecided)  # or the same search would begin again
        for edit_id in ranked:
            self.convict(edit_id, Reason(Why.NOT_CLEARED, runs=self.runs))

    def _found(self, edit_id: str) -> tuple[Reason, Broken | None]:
        """Why a search names an edit, and what that edit broke by itself."""
        run = self.alone(edit_id)
        if run is not None:
            reason = Reason(Why.ALONE, failed=complaints(run.decision))
            return reason, broken_by((edit_id,), run, None)
        without, broken = self.pair(edit_id)
        return Reason(Why.FOUND, without=without), broken


def blame(
    judge: Judge,
    edits: Mapping[str, Edit],
    factors: Mapping[str, str],
    failed: Verdict,
    *,
    max_runs: int = MAX_PROBE_RUNS,
) -> Blame:
    """Find the edits at fault in a failed batch, on cached factors.

    Where edits that did not take are all that is wrong, they get a stronger step, up to
    `STEP_TRIES` times and as long as that does no harm; those that still do not take are set
    aside. Whatever else is wrong, the rest is bisected without them. Edits that did not take in a
    batch with other culprits stay in: the next version, without those, says only that of them, and
    then they get their stronger step. A batch of one needs no search: it fails with its edit.

    Args:
        judge: Judges subsets against the same parent.
        edits: The batch by edit id.
        factors: Factor digest by edit id.
        failed: The whole batch's verdict.
        max_runs: Probe runs at most. When they are used up, the suspects that are not cleared are
            set aside and the rest goes on.
    """
    case = _Case(judge, edits, factors, failed, max_runs)
    decision, strongest = failed.decision, None
    if only_taking(decision):
        decision = case.try_stronger()
        if decision.outcome is Outcome.PASS:
            return Blame({}, case.stronger, case.runs)
        strongest = STEP_GROWTH**case.runs
    if len(edits) == 1 and decision.outcome is Outcome.FAIL:
        [edit_id] = edits
        reason = Reason(Why.ALONE, failed=complaints(failed.decision), strongest=strongest)
        case.convict(edit_id, reason, broken_by((edit_id,), Run.of(failed), None))
        return Blame(case.culprits, case.stronger, case.runs)
    weak: Sequence[str] = [e for e in decision.not_taken if e in case.now]
    if weak:
        after = case.set_aside_weak(weak, strongest=strongest)
        if after is not None and after.outcome is not Outcome.FAIL:
            return Blame(case.culprits, case.stronger, case.runs)
        decision = after or decision
    if case.now:
        case.search(decision)
    return Blame(case.culprits, case.stronger, case.runs)
