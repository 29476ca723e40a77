"""Probe a version, judge it, and find who is to blame where the gate says no.

Everything here works on cached factors: judging a subset of a batch means one composition and one
probe run, never a new gradient (issue 5).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from ledger.records import Model, SetMember, Version
from mend_core.datasets.edit import Edit
from mend_core.errors import PolicyInvalid, StoreCorrupt, SuiteInvalid
from mend_core.factors import GridRows
from mend_core.probes import (
    GateDecision,
    Outcome,
    Policy,
    ProbeItem,
    ProbeResult,
    ProbeSuite,
    Scores,
    Search,
    Update,
    build_suite,
    decide,
    find,
    sample_edits,
    summarise,
)
from mend_core.probes.scoring import Scorer
from workers import faults
from workers.building import Built, build
from workers.runtime import WarmModel, Weights

log = logging.getLogger("mend.gate")

RETAINED_EDITS = 200
"""Edits of the parent asked again with every version (a fixed sample by the hash of their id)."""

STEP_GROWTH = 1.5
"""How much stronger the step of an edit that did not take becomes with each try."""

STEP_TRIES = 3
"""Stronger steps tried before an edit that does not take is quarantined."""


def user_items(model: Model) -> tuple[ProbeItem, ...]:
    """The model's own probe items, kept in its settings under ``suite``.

    Raises:
        SuiteInvalid: An item breaks a rule of the format.
    """
    records = model.settings.get("suite", ())
    if not isinstance(records, (list, tuple)):
        raise SuiteInvalid(f"model {model.name}: settings.suite must be a list of probe items")
    return tuple(ProbeItem.from_dict(record) for record in records)


def check_model(model: Model) -> None:
    """Refuse a policy or a suite that no version could be judged by, before anything is claimed.

    Raises:
        SuiteInvalid: An item breaks a rule of the format.
        PolicyInvalid: The policy breaks one of its own.
    """
    user_items(model)
    policy_of(model)


def policy_of(model: Model) -> Policy:
    """The model's gate policy.

    Raises:
        PolicyInvalid: It breaks a rule of its format.
    """
    try:
        return Policy.model_validate(dict(model.policy))
    except ValidationError as error:
        raise PolicyInvalid(f"model {model.name}: its policy is not usable: {error}") from error


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What probing a version gave.

    Attributes:
        decision: The gate's.
        suite: What was asked.
        results: The version's answers.
        parent: The parent's, on the same suite.
        base: The base's, on the same suite.
        scores: Summary of `results`.
    """

    decision: GateDecision
    suite: ProbeSuite
    results: list[ProbeResult]
    parent: list[ProbeResult]
    base: list[ProbeResult]
    scores: Scores

    def rows(self) -> list[dict[str, Any]]:
        """What the ledger keeps per item: the answer, and those of parent and base beside it."""
        parents = {r.item_id: r for r in self.parent}
        bases = {r.item_id: r for r in self.base}
        return [
            result.to_dict()
            | {
                "parent": parents[result.item_id].to_dict(),
                "base": bases[result.item_id].to_dict(),
            }
            for result in self.results
        ]


@dataclass(eq=False)
class Judge:
    """Judges candidates of one model against one parent.

    Attributes:
        warm: The loaded model.
        model: Its registration.
        number: The number the candidate has or will have.
        parent: Digest of the parent version (its accumulators are used where it has any).
        parent_set: Factor digests of the parent's set.
        parent_weights: The parent's exact weights; empty for the base.
        retained: The parent's live edits (asked again, sampled).
        removes: Factor digests that leave the set.
    """

    warm: WarmModel
    model: Model
    number: int
    parent: str
    parent_set: Sequence[str]
    parent_weights: Weights
    retained: Sequence[Edit] = ()
    removes: Sequence[str] = ()
    runs: int = 0
    _policy: Policy = field(init=False)
    _extra: tuple[ProbeItem, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Read policy and items once."""
        self._policy = policy_of(self.model)
        self._extra = user_items(self.model)

    def suite(self, edits: Iterable[Edit]) -> ProbeSuite:
        """The suite of a version that brings in these edits."""
        retained = sample_edits(list(self.retained), RETAINED_EDITS)
        return build_suite(edits, self._extra, retained=retained)

    def candidate(self, adds: Sequence[str]) -> Built:
        """The version parent + adds - removes, in memory."""
        return build(
            self.warm,
            parent=self.parent,
            parent_set=self.parent_set,
            adds=adds,
            removes=self.removes,
        )

    def judge_version(
        self, version: Version, members: Sequence[SetMember], edits: Sequence[Edit]
    ) -> Verdict:
        """Probe a committed version.

        Raises:
            StoreCorrupt: Its set does not give its digest.
        """
        built = self.candidate([m.factor_digest for m in members])
        if built.digest != version.digest:
            raise StoreCorrupt(
                f"version {version.number}: its edit set gives {built.digest}, the ledger says "
                f"{version.digest}; run `mend doctor --deep`"
            )
        self.warm.remember(built.digest, built.weights)
        return self.judge(built, edits)

    def judge(self, built: Built, edits: Sequence[Edit]) -> Verdict:
        """Probe a built version on the suite of its new edits, and decide."""
        self.runs += 1
        suite = self.suite(edits)
        scorer = Scorer(self.warm.base, suite, prefix=self.warm.prefix)
        base = scorer.reference()
        parent = scorer.score(self.parent_weights, drafts=base) if self.parent_weights else base
        results = scorer.score(built.weights, drafts=parent) if built.weights else base
        decision = decide(
            self._policy,
            results,
            parent,
            base,
            update=Update(norms=built.norms, finite=built.finite, number=max(self.number, 1)),
            suite_digest=suite.digest,
        )
        return Verdict(decision, suite, results, parent, base, summarise(results, base))


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


def evidence(verdict: Verdict, edit_id: str, reason: str) -> dict[str, Any]:
    """What a person needs to see why an edit was set aside."""
    broken = [f.to_dict() for f in verdict.decision.flips if f.broke]
    own = [r.to_dict() for r in verdict.results if r.edit_id == edit_id and not r.passed]
    return {
        "reason": reason,
        "gate": verdict.decision.outcome.value,
        "checks": [c.to_dict() for c in verdict.decision.checks if c.outcome is not Outcome.PASS],
        "broke": broken[:50],
        "own": own[:20],
        "policy": verdict.decision.policy_digest,
        "suite": verdict.decision.suite_digest,
    }


def blame(
    judge: Judge, edits: Mapping[str, Edit], factors: Mapping[str, str], failed: Verdict
) -> Blame:
    """Find the edits at fault in a failed batch, on cached factors.

    First the edits that did not take get a stronger step, up to `STEP_TRIES` times; those that
    still do not take are set aside. If the rest fails for another reason, it is bisected.

    Args:
        judge: Judges subsets against the same parent.
        edits: The batch by edit id.
        factors: Factor digest by edit id.
        failed: The whole batch's verdict.
    """
    runs_before = judge.runs
    now: dict[str, str] = dict(factors)
    stronger: dict[str, GridRows] = {}
    culprits: dict[str, dict[str, Any]] = {}
    verdict = failed
    for attempt in range(1, STEP_TRIES + 1):
        weak = [e for e in verdict.decision.not_taken if e in now]
        if not weak:
            break
        for edit_id in weak:
            original = judge.warm.factors.get(factors[edit_id])
            factor = strengthen(judge.warm, original, STEP_GROWTH**attempt)
            stronger[edit_id] = factor
            now[edit_id] = judge.warm.factors.put(factor)
        faults.point("mid-bisect")
        verdict = judge.judge(judge.candidate(list(now.values())), [edits[e] for e in now])
        if verdict.decision.outcome is Outcome.PASS:
            return Blame({}, stronger, judge.runs - runs_before)
    for edit_id in [e for e in verdict.decision.not_taken if e in now]:
        culprits[edit_id] = evidence(
            verdict,
            edit_id,
            f"did not take, even with a step {STEP_GROWTH**STEP_TRIES:.3g} x as strong",
        )
        stronger.pop(edit_id, None)
        del now[edit_id]

    def evaluate(subset: Sequence[str]) -> Outcome:
        nonlocal verdict
        faults.point("mid-bisect")
        built = judge.candidate([now[e] for e in subset])
        verdict = judge.judge(built, [edits[e] for e in subset])
        return verdict.decision.outcome

    if now and (not culprits or evaluate(tuple(now)) is Outcome.FAIL):
        whole = verdict
        broken = {f.edit_id for f in whole.decision.flips if f.broke and f.edit_id in now}
        search: Search = find(tuple(now), evaluate, suspects=sorted(filter(None, broken)))
        for edit_id in search.culprits:
            culprits[edit_id] = evidence(whole, edit_id, "the batch passes its gate without it")
            stronger.pop(edit_id, None)
    return Blame(culprits, stronger, judge.runs - runs_before)
