"""Find who is to blame where the gate says no, with a bounded number of probe runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mend_core.datasets.edit import Edit
from mend_core.factors import GridRows
from mend_core.probes import Flip, GateDecision, Outcome, find
from mend_core.safepoints import safe_point
from workers import faults
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


def broken_by(decision: GateDecision) -> dict[str, Flip]:
    """Items that the parent answered rightly and the judged set does not, by id."""
    return {f.item_id: f for f in decision.flips if f.broke and f.against == "parent"}


def evidence(
    verdict: Verdict, edit_id: str, reason: str, broke: Mapping[str, Flip] | None = None
) -> dict[str, Any]:
    """What a person needs to see why an edit was set aside.

    Args:
        verdict: The whole batch's.
        edit_id: Which edit.
        reason: Why it is set aside.
        broke: The items it broke, where a search told them from those of other edits; None shows
            every item that the batch broke, and says so (``broke_by``).
    """
    whole = broken_by(verdict.decision)
    shown = [f for f in verdict.decision.flips if f.broke]
    if broke is not None:
        # The whole batch's answers where it has them: those of a search end where they turn wrong.
        shown = [whole.get(item_id, flip) for item_id, flip in sorted(broke.items())]
    broken = [f.to_dict() for f in shown]
    own = [r.to_dict() for r in verdict.results if r.edit_id == edit_id and not r.passed]
    return {
        "reason": reason,
        "gate": verdict.decision.outcome.value,
        "checks": [c.to_dict() for c in verdict.decision.checks if c.outcome is not Outcome.PASS],
        "broke": broken[:50],
        "broke_by": "batch" if broke is None else "edit",
        "own": own[:20],
        "policy": verdict.decision.policy_digest,
        "suite": verdict.decision.suite_digest,
    }


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
    seen: dict[frozenset[tuple[str, str]], GateDecision] = field(default_factory=dict)
    culprits: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: int = 0

    def __post_init__(self) -> None:
        self.now = dict(self.factors)

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
        found = self.judge.judge(built, edits, complete=False, tuning=tuning).decision
        if not tuning:
            self.seen[frozenset(factors.items())] = found
        return found

    def convict(self, edit_id: str, reason: str, broke: Mapping[str, Flip] | None = None) -> None:
        self.culprits[edit_id] = evidence(self.failed, edit_id, reason, broke)
        self.stronger.pop(edit_id, None)
        self.now.pop(edit_id, None)

    def broken_alone(self, edit_id: str) -> dict[str, Flip] | None:
        """Items broken in a set with an edit and not in the same set without it; None if unknown.

        A search ends with just such a pair for each culprit it finds.
        """
        one = (edit_id, self.now[edit_id])
        for chosen, decision in self.seen.items():
            without = self.seen.get(chosen - {one})
            if one not in chosen or decision.outcome is not Outcome.FAIL:
                continue
            if without is None and len(chosen) > 1:
                continue
            if without is not None and without.outcome is Outcome.FAIL:
                continue
            spared = {} if without is None else broken_by(without)
            broke = {i: flip for i, flip in broken_by(decision).items() if i not in spared}
            return broke or None
        return None

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

    def search(self, decision: GateDecision) -> None:
        """Bisect what is left, which fails for a reason that stronger steps do not cure."""
        self.seen.setdefault(frozenset(self.now.items()), decision)
        found = find(
            tuple(self.now),
            lambda subset: self.run({e: self.now[e] for e in subset}).outcome,
            suspects=decision.suspects(),
            max_runs=self.left(),
        )
        told = {edit_id: self.broken_alone(edit_id) for edit_id in found.culprits}
        for edit_id, broke in told.items():
            self.convict(edit_id, "the batch passes its gate without it", broke)
        if not found.exhausted:
            return
        undecided = set(found.undecided)
        ranked = [e for e in decision.suspects() if e in undecided]
        if not ranked and not found.culprits:
            ranked = list(found.undecided)  # or the same search would begin again
        for edit_id in ranked:
            self.convict(
                edit_id,
                f"suspected and not cleared: the search for the edits at fault ended after "
                f"{self.max_runs} probe runs",
            )


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
    then they get their stronger step.

    Args:
        judge: Judges subsets against the same parent.
        edits: The batch by edit id.
        factors: Factor digest by edit id.
        failed: The whole batch's verdict.
        max_runs: Probe runs at most. When they are used up, the suspects that are not cleared are
            set aside and the rest goes on.
    """
    case = _Case(judge, edits, factors, failed, max_runs)
    decision = failed.decision
    weak: Sequence[str] = [e for e in decision.not_taken if e in case.now]
    if only_taking(decision):
        decision = case.try_stronger()
        if decision.outcome is Outcome.PASS:
            return Blame({}, case.stronger, case.runs)
        weak = [e for e in decision.not_taken if e in case.now]
        for edit_id in weak:
            case.convict(
                edit_id,
                f"did not take, and no step up to {STEP_GROWTH**STEP_TRIES:.3g} x as strong helped "
                "without harm",
                {i: f for i, f in broken_by(failed.decision).items() if f.edit_id == edit_id},
            )
    else:
        for edit_id in weak:
            del case.now[edit_id]
    if weak and case.now and case.left():
        decision = case.run(case.now)
        if decision.outcome is not Outcome.FAIL:
            spared = broken_by(decision)
            broke = {i: f for i, f in broken_by(failed.decision).items() if i not in spared}
            for edit_id in weak:
                if edit_id not in case.culprits:
                    case.convict(
                        edit_id, "did not take, and the batch passes its gate without it", broke
                    )
            return Blame(case.culprits, case.stronger, case.runs)
    if case.now:
        case.search(decision)
    return Blame(case.culprits, case.stronger, case.runs)
