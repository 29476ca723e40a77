"""Probe a version and judge it.

Everything here works on cached factors: judging a subset of a batch means one composition and one
probe run, never a new gradient (issue 5).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ledger.records import Model, SetMember, Version
from mend_core.datasets.edit import Edit
from mend_core.errors import PolicyInvalid, StoreCorrupt, SuiteInvalid
from mend_core.probes import (
    GateDecision,
    Outcome,
    Policy,
    ProbeItem,
    ProbeResult,
    ProbeSuite,
    Scores,
    Update,
    build_suite,
    decide,
    load_policy,
    sample_edits,
    summarise,
)
from mend_core.probes.asking import check_suite
from mend_core.probes.neighbours import neighbours
from mend_core.probes.policy import DEFAULT
from mend_core.probes.results import question
from mend_core.probes.scoring import Scorer
from mend_core.probes.suites import refuse_reserved
from mend_core.probes.wording import told
from workers.building import Built, build, digest_of
from workers.progress import Tell
from workers.runtime import WarmModel, Weights
from workers.standing import standing_items, worth_searching

log = logging.getLogger("mend.gate")

RETAINED_EDITS = 200
"""Edits of the parent asked again with every version (a fixed sample by the hash of their id)."""


def user_items(model: Model) -> tuple[ProbeItem, ...]:
    """The model's own probe items, kept in its settings under ``suite``.

    Raises:
        SuiteInvalid: An item breaks a rule of the format.
    """
    records = model.settings.get("suite", ())
    if not isinstance(records, (list, tuple)):
        raise SuiteInvalid(f"model {model.name}: settings.suite must be a list of probe items")
    items = tuple(ProbeItem.from_dict(record) for record in records)
    refuse_reserved(items)
    return items


def check_model(model: Model, warm: WarmModel, suites: Path) -> None:
    """Refuse a policy or a suite that no version could be judged by, before anything is claimed.

    Raises:
        SuiteInvalid: An item breaks a rule of the format, or the model cannot be asked it.
        PolicyInvalid: The policy breaks one of its own.
    """
    policy_of(model)
    items = (*user_items(model), *standing_items(model.settings, suites, warm))
    if items != warm.askable:
        check_suite(warm.base, ProbeSuite(items))
        warm.askable = items


def policy_of(model: Model) -> Policy:
    """The model's gate policy.

    Raises:
        PolicyInvalid: It breaks a rule of its format.
    """
    try:
        return Policy.model_validate(dict(model.policy))
    except ValidationError as error:
        raise PolicyInvalid(f"model {model.name}: its policy is not usable: {error}") from error


def _unanswered(suite: ProbeSuite, known: Sequence[ProbeResult]) -> int:
    answered = {question(result) for result in known}
    return sum(question(item) not in answered for item in suite.items)


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
        policy: What was demanded.
        by_default: What the default policy would have said of the same results; None where that is
            the policy, or the run was a search's.
    """

    decision: GateDecision
    suite: ProbeSuite
    results: list[ProbeResult]
    parent: list[ProbeResult]
    base: list[ProbeResult]
    scores: Scores
    policy: Policy
    by_default: GateDecision | None = None

    def kept(self) -> dict[str, Any]:
        """What the ledger keeps beside the checks: a report must not need the present policy."""
        return self.scores.to_dict() | {
            "decision": self.decision.to_dict(),
            "policy": self.policy.to_dict(),
            "told": self.told(),
            "by_default": None if self.by_default is None else self._stopped_by_default(),
        }

    def _stopped_by_default(self) -> dict[str, Any]:
        """The default policy's outcome and the sentences of the checks that stand against it."""
        assert self.by_default is not None
        against = {Outcome.FAIL, Outcome.INCONCLUSIVE}
        return {
            "outcome": self.by_default.outcome.value,
            "against": [c.sentence for c in self.by_default.checks if c.outcome in against],
        }

    def told(self) -> dict[str, Any]:
        """The decision in plain words, for readers that cannot word it themselves."""
        return told(
            [check.to_dict() for check in self.decision.checks], self.results, self.decision.asked
        )

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
        suites: Folder of suites by digest, the standing suite of the registration among them.
        parent_warm: The parent's own loaded model where it stands on another base or editor (after
            a rebase); then `parent_set` is empty and every edit is an added one.
        tell: Hears how far probing is; None where nobody waits.
        search: Probe runs at which a search for the edits at fault ends; 0 while there is none.
        runs: Probe runs so far.
    """

    warm: WarmModel
    model: Model
    number: int
    parent: str
    parent_set: Sequence[str]
    parent_weights: Weights
    retained: Sequence[Edit] = ()
    removes: Sequence[str] = ()
    suites: Path = Path()
    parent_warm: WarmModel | None = None
    tell: Tell | None = None
    search: int = 0
    runs: int = 0
    _policy: Policy = field(init=False)
    _extra: tuple[ProbeItem, ...] = field(init=False)
    _standing: tuple[ProbeItem, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Read policy and items once."""
        self._policy = policy_of(self.model)
        self._extra = user_items(self.model)
        self._standing = standing_items(self.model.settings, self.suites, self.warm)

    def suite(self, edits: Iterable[Edit], after: GateDecision | None = None) -> ProbeSuite:
        """The suite of a version that brings in these edits.

        Neighbours of the edits and the standing suite are asked where the model was registered with
        a standing suite.

        Args:
            edits: The new edits.
            after: In a search for edits at fault, the decision that began it: of the standing suite
                only what failed then is asked, in part.
        """
        retained = sample_edits(list(self.retained), RETAINED_EDITS)
        new = list(edits)
        extra = [*self._extra]
        if self._standing:
            extra += neighbours(new)
            extra += self._standing if after is None else worth_searching(self._standing, after)
        return build_suite(new, extra, retained=retained, compare="lead")

    def candidate(self, adds: Sequence[str]) -> Built:
        """The version parent + adds - removes, in memory."""
        return build(
            self.warm,
            parent=self.parent if self.parent_warm is None else None,
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
        adds = [m.factor_digest for m in members]
        built = self._built(version, adds) or self.candidate(adds)
        if built.digest != version.digest:
            raise StoreCorrupt(
                f"version {version.number}: its edit set gives {built.digest}, the ledger says "
                f"{version.digest}; run `mend doctor --deep`"
            )
        self.warm.remember(built.digest, built.weights)
        return self.judge(built, edits)

    def _built(self, version: Version, adds: Sequence[str]) -> Built | None:
        """The version as it was built for its commit, where this process still has it."""
        weights = self.warm.recall(version.digest)
        norms, finite = version.meta.get("norms"), version.meta.get("finite")
        if weights is None or norms is None or finite is None:
            return None
        members = tuple(sorted((set(self.parent_set) - set(self.removes)) | set(adds)))
        digest = digest_of(self.warm, members)
        return Built(digest, members, None, weights, dict(norms), finite=bool(finite))

    def without_canaries(self, verdict: Verdict) -> GateDecision:
        """What would have been said of a version had its canaries not been asked.

        Whoever chooses a setting by what comes out (the step of an edit) may only see this.
        """
        if not any(r.never_for_tuning for r in verdict.results):
            return verdict.decision
        runs = [
            [r for r in run if not r.never_for_tuning]
            for run in (verdict.results, verdict.parent, verdict.base)
        ]
        return decide(self._policy, *runs)

    def judge(
        self,
        built: Built,
        edits: Sequence[Edit],
        *,
        complete: bool = True,
        tuning: bool = False,
        after: GateDecision | None = None,
    ) -> Verdict:
        """Probe a built version on the suite of its new edits, and decide.

        Base and parent are asked only what they have not been asked before.

        Args:
            built: The version.
            edits: Its new edits.
            complete: False for a search: same verdicts, but answers end where they turn wrong.
            tuning: Leave the canaries out.
            after: The decision that began a search; see `suite`.
        """
        self.runs += 1
        began = time.monotonic()
        warm = self.warm
        suite = self.suite(edits, after)
        if tuning:
            suite = suite.for_tuning()
        known = warm.answers.known()
        scorer = Scorer(
            warm.base,
            suite,
            prefix=warm.prefix,
            reference=known,
            progress=self._watch(suite, known),
        )
        base = scorer.reference()
        warm.answers.keep(base)
        parent = self._parents(suite, scorer, base)
        results = base
        if built.weights:
            results = scorer.score(built.weights, drafts=parent, complete=complete)
            if complete:
                warm.keep_results(built.digest, results)
        update = Update(norms=built.norms, finite=built.finite, number=max(self.number, 1))
        decision = decide(
            self._policy, results, parent, base, update=update, suite_digest=suite.digest
        )
        default = load_policy(DEFAULT)
        by_default = None
        if complete and self._policy.digest != default.digest:
            by_default = decide(default, results, parent, base, update=update)
        log.info(
            "model %s: probe run %d: %d edits, %d items, %s in %.1f s",
            self.model.name,
            self.runs,
            len(edits),
            len(suite),
            decision.outcome.value,
            time.monotonic() - began,
        )
        return Verdict(
            decision,
            suite,
            results,
            parent,
            base,
            summarise(results, base),
            self._policy,
            by_default,
        )

    def _watch(
        self, suite: ProbeSuite, known: Sequence[ProbeResult]
    ) -> Callable[[int, int], None] | None:
        """Tells how far this probe run is; in a search, how far that is."""
        tell = self.tell
        if tell is None:
            return None
        if self.search:
            tell("bisecting", self.runs, self.search)
            return None
        of = _unanswered(suite, known) + len(suite)
        if self.parent_weights and self.parent_warm is None:
            of += _unanswered(suite, self.warm.results_of(self.parent))
        before = last = 0
        tell("probing", 0, of)

        def watch(done: int, _of: int) -> None:
            # Base, parent and version are asked one after the other, each counted from the start.
            nonlocal before, last
            before += last if done < last else 0
            last = done
            tell("probing", min(before + done, of), of)

        return watch

    def _parents(
        self, suite: ProbeSuite, scorer: Scorer, base: list[ProbeResult]
    ) -> list[ProbeResult]:
        """The parent's results; after a rebase, on its own base and against that base's answers."""
        warm = self.warm
        if self.parent_warm is not None:
            warm = self.parent_warm
            scorer = Scorer(warm.base, suite, prefix=warm.prefix, reference=warm.answers.known())
            base = scorer.reference()
            warm.answers.keep(base)
        if not self.parent_weights:
            return base
        known = warm.results_of(self.parent)
        parent = scorer.score(self.parent_weights, drafts=base, known=known)
        merged = {question(r): r for r in (*known, *parent)}
        warm.keep_results(self.parent, list(merged.values()))
        return parent
