"""The gate: a policy and paired probe results in, pass / fail / inconclusive out.

Three outcomes, because "not shown to be harmful" is not "shown to be harmless":

* **pass**: the confidence bound is on the right side of the threshold;
* **fail**: an invariant is broken, or the observed rate itself is on the wrong side of the
  threshold, so that no larger suite with this result could pass;
* **inconclusive**: the observed rate is on the right side and the bound is not. More probe items
  could settle it; each such check says how many.

Paired checks are non-inferiority tests, slice by slice: Tango's upper bound of the net loss must
stay below the margin. Holm's step-down shares the error level between the slices of one rule, so
that "every slice listed as safe is safe" holds at that level.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from mend_core.errors import PolicyInvalid
from mend_core.probes.policy import DriftRule, PairedRule, Policy, Score, ShareRule
from mend_core.probes.results import ProbeResult, mean_kl, pair_up, perplexity
from mend_core.probes.statistics import (
    budget_consumed,
    design_effect,
    holm_levels,
    needed_for_margin,
    needed_for_share,
    noninferiority_p,
    tango_upper,
    wilson_lower,
)
from mend_core.probes.suites import GOLDEN_KINDS, RETAINED_SLICE, ProbeKind

NAMED_LIMIT = 5
"""Items a sentence names before it says how many more there are."""


class Outcome(StrEnum):
    """What a check, or the gate as a whole, says; SKIPPED occurs on checks only."""

    PASS = "pass"  # noqa: S105 -- not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Update:
    """What is known of a version's weights apart from its answers.

    Attributes:
        norms: Per matrix ‖ΔW‖/‖W‖ (Frobenius) against the base.
        finite: No value of the update is NaN or Inf.
        number: Which version of its model this is, from 1 (for an alpha spent over versions).
    """

    norms: Mapping[str, float] = field(default_factory=dict)
    finite: bool = True
    number: int = 1


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the gate's verdict.

    Attributes:
        name: e.g. "hard.protected", "parent/locality/neighbour".
        outcome: What it says.
        observed: What was measured; None where it is not a number.
        bound: The confidence bound that was compared, or None where none applies.
        threshold: What it was compared with.
        n: Items it rests on.
        needed: Items after which the observed rate would settle it; None where nothing is open or
            where no number would.
        sentence: All of that for a person.
    """

    name: str
    outcome: Outcome
    observed: float | None
    bound: float | None
    threshold: float | None
    n: int
    needed: int | None
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"outcome": self.outcome.value}


@dataclass(frozen=True, slots=True)
class Flip:
    """An item whose verdict differs between two versions, with both answers.

    Attributes:
        item_id: Which item.
        kind: Its kind.
        slice: Its slice.
        edit_id: The edit the item was built from, if any.
        prompt: What was asked.
        expect: What was expected.
        before: Answer of the version compared with.
        after: Answer of the candidate.
        broke: True where it passed before and fails now; False the other way round.
        score: "free" where the free-running verdict flipped, else "forced".
        against: "parent" or "base".
    """

    item_id: str
    kind: str
    slice: str
    edit_id: str | None
    prompt: str
    expect: tuple[str, ...]
    before: str
    after: str
    broke: bool
    score: Score
    against: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"expect": list(self.expect)}


@dataclass(frozen=True, slots=True)
class GateDecision:
    """The verdict with all its grounds.

    Attributes:
        outcome: fail if any check fails; else inconclusive if any is; else pass.
        checks: Every check made, in order, skipped ones included.
        not_taken: Ids of new edits whose own prompt is not answered with the target.
        flips: Items that flipped against the parent, then against the base.
        policy_digest: The policy's name.
        suite_digest: The suite's name.
    """

    outcome: Outcome
    checks: tuple[Check, ...]
    not_taken: tuple[str, ...]
    flips: tuple[Flip, ...]
    policy_digest: str
    suite_digest: str | None = None

    @property
    def sentence(self) -> str:
        """The verdict and the first reason for it."""
        reasons = [c.sentence for c in self.checks if c.outcome is self.outcome]
        if self.outcome is Outcome.PASS:
            return f"pass: all {len(reasons)} checks hold"
        return f"{self.outcome.value}: {'; '.join(reasons)}"

    def suspects(self) -> tuple[str, ...]:
        """Edits to look at first: those that did not take, then those whose own probes broke."""
        broken = Counter(f.edit_id for f in self.flips if f.broke and f.edit_id is not None)
        ranked = sorted(broken, key=lambda edit: (-broken[edit], edit))
        return tuple(dict.fromkeys((*self.not_taken, *ranked)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "outcome": self.outcome.value,
            "sentence": self.sentence,
            "checks": [check.to_dict() for check in self.checks],
            "not_taken": list(self.not_taken),
            "flips": [flip.to_dict() for flip in self.flips],
            "policy_digest": self.policy_digest,
            "suite_digest": self.suite_digest,
        }


def decide(
    policy: Policy,
    candidate: Sequence[ProbeResult],
    parent: Sequence[ProbeResult] | None,
    base: Sequence[ProbeResult],
    *,
    update: Update | None = None,
    suite_digest: str | None = None,
) -> GateDecision:
    """Judge a candidate.

    Args:
        policy: What is demanded.
        candidate: The candidate's results.
        parent: The parent's results on the same suite; None where the parent is the base.
        base: The base's results on the same suite.
        update: What is known of the candidate's weights; where the policy bounds the update's norm
            and this is missing, that check is inconclusive.
        suite_digest: Recorded with the decision.

    Raises:
        SuiteInvalid: Parent or base were not asked every item of the candidate's run.
        PolicyInvalid: The policy counts a teacher-forced verdict that the results do not hold.
    """
    before = base if parent is None else parent
    to_base, to_parent = pair_up(candidate, base), pair_up(candidate, before)
    checks = _hard_checks(policy, candidate, to_parent, to_base, update)
    edits = [r for r in candidate if r.kind is ProbeKind.EDIT]
    paraphrases = [r for r in candidate if r.kind is ProbeKind.PARAPHRASE]
    if policy.success is not None:
        checks.append(_share_check("success", policy.success, policy.alpha, edits))
    if policy.generality is not None:
        checks.append(_share_check("generality", policy.generality, policy.alpha, paraphrases))
    if policy.parent is not None:
        pairs = [(a, b) for a, b in to_parent if _is_paired(a) or a.slice == RETAINED_SLICE]
        checks += _paired_checks("parent", policy.parent, policy.alpha, pairs)
    if policy.drift is not None:
        number = 1 if update is None else update.number
        pairs = [(a, b) for a, b in to_base if _is_paired(a)]
        checks += _paired_checks("drift", policy.drift, policy.drift_alpha(number), pairs)
        checks += _text_checks(policy.drift, to_base)
    outcomes = {check.outcome for check in checks}
    outcome = next((o for o in (Outcome.FAIL, Outcome.INCONCLUSIVE) if o in outcomes), Outcome.PASS)
    flips = [] if parent is None else find_flips(candidate, parent, against="parent")
    flips += find_flips(candidate, base, against="base")
    return GateDecision(
        outcome=outcome,
        checks=tuple(checks),
        not_taken=_not_taken(candidate, policy.hard.own_prompt_score),
        flips=tuple(flips),
        policy_digest=policy.digest,
        suite_digest=suite_digest,
    )


def find_flips(
    candidate: Sequence[ProbeResult], reference: Sequence[ProbeResult], *, against: str
) -> list[Flip]:
    """Items whose verdict differs from the reference run's, broken ones first."""
    flips = []
    for after, before in pair_up(candidate, reference):
        if after.kind is ProbeKind.PERPLEXITY:
            continue
        score: Score = "free" if after.passed != before.passed else "forced"
        now, then = _verdict(after, score), _verdict(before, score)
        if now == then:
            continue
        flips.append(
            Flip(
                item_id=after.item_id,
                kind=after.kind.value,
                slice=after.slice,
                edit_id=after.edit_id,
                prompt=after.prompt,
                expect=after.expect,
                before=before.answer,
                after=after.answer,
                broke=then,
                score=score,
                against=against,
            )
        )
    return sorted(flips, key=lambda flip: (not flip.broke, flip.item_id))


def _verdict(result: ProbeResult, score: Score) -> bool:
    """Free-running verdict, or the teacher-forced one where the kind has one."""
    if score == "free" or result.passed_forced is None:
        return result.passed
    return result.passed_forced


def _is_paired(result: ProbeResult) -> bool:
    return result.kind in {ProbeKind.LOCALITY, ProbeKind.CAPABILITY}


def _not_taken(candidate: Sequence[ProbeResult], score: Score) -> tuple[str, ...]:
    return tuple(
        r.edit_id if r.edit_id is not None else r.item_id
        for r in candidate
        if r.kind is ProbeKind.EDIT and r.slice != RETAINED_SLICE and not _verdict(r, score)
    )


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED_LIMIT])
    more = len(names) - NAMED_LIMIT
    return shown if more <= 0 else f"{shown} and {more} more"


def _invariant(name: str, bad: Sequence[str], n: int, allowed: int, what: str) -> Check:
    """A count of violations that may not exceed what is allowed."""
    if n == 0:
        return Check(name, Outcome.SKIPPED, None, None, allowed, 0, None, f"{what}: nothing to ask")
    ok = len(bad) <= allowed
    detail = f"{what}: {len(bad)} of {n}, {allowed} allowed"
    sentence = detail if not bad else f"{detail} ({_named(bad)})"
    outcome = Outcome.PASS if ok else Outcome.FAIL
    return Check(name, outcome, len(bad), None, allowed, n, None, sentence)


def _hard_checks(
    policy: Policy,
    candidate: Sequence[ProbeResult],
    to_parent: Sequence[tuple[ProbeResult, ProbeResult]],
    to_base: Sequence[tuple[ProbeResult, ProbeResult]],
    update: Update | None,
) -> list[Check]:
    hard, checks = policy.hard, []
    if not candidate:
        sentence = "the suite is empty: nothing was asked, so nothing is shown"
        checks.append(Check("suite", Outcome.INCONCLUSIVE, None, None, None, 0, 1, sentence))
    if hard.finite:
        bad = [r.item_id for r in candidate if not r.finite]
        if update is not None and not update.finite:
            bad = ["the update itself", *bad]
        checks.append(
            _invariant("hard.finite", bad, len(candidate) + 1, 0, "probes with NaN or Inf")
        )
    if hard.update_norm is not None:
        checks.append(_norm_check(hard.update_norm, update))
    if hard.protected:
        asked = [r for r in candidate if r.kind is ProbeKind.PROTECTED]
        bad = [r.item_id for r in asked if not r.passed]
        checks.append(
            _invariant("hard.protected", bad, len(asked), 0, "protected answers that changed")
        )
    if hard.own_prompt:
        new = [r for r in candidate if r.kind is ProbeKind.EDIT and r.slice != RETAINED_SLICE]
        missed = _not_taken(candidate, hard.own_prompt_score)
        how = "free-running" if hard.own_prompt_score == "free" else "teacher-forced"
        what = f"new edits that do not answer their own prompt ({how})"
        checks.append(_invariant("hard.own_prompt", missed, len(new), 0, what))
    for name, kinds, allowed, what in (
        ("hard.golden", GOLDEN_KINDS, hard.golden_new_failures, "golden prompts newly failing"),
        ("hard.health", {ProbeKind.HEALTH}, hard.health_new_failures, "texts newly degenerate"),
    ):
        asked = [r for r in candidate if r.kind in kinds]
        fine = {a.item_id for a, b in (*to_parent, *to_base) if b.passed}
        bad = [r.item_id for r in asked if not r.passed and r.item_id in fine]
        checks.append(_invariant(name, bad, len(asked), allowed, what))
    return checks


def _norm_check(limit: float, update: Update | None) -> Check:
    name = "hard.update_norm"
    if update is None:
        sentence = f"the update's norm was not measured; the policy bounds it at {limit:.3g}"
        return Check(name, Outcome.INCONCLUSIVE, None, None, limit, 0, None, sentence)
    if not update.norms:
        return Check(name, Outcome.SKIPPED, None, None, limit, 0, None, "no matrix was changed")
    worst = max(update.norms, key=lambda matrix: (update.norms[matrix], matrix))
    value = update.norms[worst]
    ok = value <= limit  # False for NaN, as it should be
    sentence = f"largest update, of {worst}: {value:.3g} of the matrix's norm, {limit:.3g} allowed"
    outcome = Outcome.PASS if ok else Outcome.FAIL
    return Check(name, outcome, _finite(value), None, limit, len(update.norms), None, sentence)


def _finite(value: float | None) -> float | None:
    """JSON has no NaN or Inf; sentences carry them."""
    return value if value is not None and abs(value) < float("inf") else None


def _empty(name: str, rule: ShareRule | PairedRule, what: str) -> Check:
    if rule.when_empty == "skip":
        return Check(name, Outcome.SKIPPED, None, None, None, 0, None, f"no {what} to ask")
    sentence = f"no {what} to ask, and the policy wants some; add items or set when_empty: skip"
    return Check(name, Outcome.INCONCLUSIVE, None, None, None, 0, None, sentence)


def _share_check(name: str, rule: ShareRule, alpha: float, results: Sequence[ProbeResult]) -> Check:
    if not results:
        return _empty(name, rule, "edit prompts" if name == "success" else "paraphrases")
    _demand_forced(name, rule.score, results)
    clusters: dict[str, list[bool]] = {}
    for r in results:
        clusters.setdefault(r.edit_id or r.item_id, []).append(_verdict(r, rule.score))
    n = len(results)
    successes = sum(sum(group) for group in clusters.values())
    # Paraphrases of one edit stand or fall together; they count for fewer than they are.
    effect = design_effect(clusters.values())
    observed = successes / n
    bound = wilson_lower(successes / effect, n / effect, alpha)
    seen = f"{name}: {successes} of {n} ({observed:.1%}), {rule.score}"
    seen += f"; lower bound {bound:.1%} at {1 - alpha:.3g} confidence"
    seen += f" (design effect {effect:.2f})" if effect > 1 else ""
    seen += f", target {rule.target:.1%}"
    best = needed_for_share(rule.target, 1.0, alpha)
    if bound >= rule.target:
        return Check(name, Outcome.PASS, observed, bound, rule.target, n, None, seen)
    if observed < rule.target:
        return Check(name, Outcome.FAIL, observed, bound, rule.target, n, None, seen)
    if rule.when_few == "observed" and best is not None and n < best:
        seen += f"; {_items(n)} cannot show it (that takes {best}), so the plain share was judged"
        return Check(name, Outcome.PASS, observed, bound, rule.target, n, best, seen)
    needed = needed_for_share(rule.target, observed, alpha)
    if needed is not None:
        needed = round(needed * effect)
    seen += _more(needed)
    return Check(name, Outcome.INCONCLUSIVE, observed, bound, rule.target, n, needed, seen)


def _items(n: int) -> str:
    return "1 item" if n == 1 else f"{n} items"


def _more(needed: int | None) -> str:
    if needed is None:
        return "; at this rate no number of items would settle it"
    return f"; at this rate {_items(needed)} would settle it"


def _demand_forced(name: str, score: Score, results: Sequence[ProbeResult]) -> None:
    if score == "forced" and all(r.passed_forced is None for r in results):
        raise PolicyInvalid(
            f"{name} counts teacher-forced verdicts, and these results hold none; use score: free"
        )


def _paired_checks(
    rule_name: str,
    rule: PairedRule,
    alpha: float,
    pairs: Sequence[tuple[ProbeResult, ProbeResult]],
) -> list[Check]:
    if not pairs:
        return [_empty(rule_name, rule, "locality or capability prompts")]
    _demand_forced(rule_name, rule.score, [a for a, _ in pairs])
    groups: dict[tuple[str, str], list[tuple[bool, bool]]] = {}
    for after, before in pairs:
        verdicts = (_verdict(after, rule.score), _verdict(before, rule.score))
        groups.setdefault((after.kind.value, after.slice), []).append(verdicts)
    names = sorted(groups)
    counts = []
    for name in names:
        broke = sum(then and not now for now, then in groups[name])
        fixed = sum(now and not then for now, then in groups[name])
        counts.append((broke, fixed, len(groups[name])))
    margins = [rule.margin_of(slice_name) for _, slice_name in names]
    p_values = [noninferiority_p(*c, m) for c, m in zip(counts, margins, strict=True)]
    levels = holm_levels(p_values, alpha)
    return [
        _paired_check(f"{rule_name}/{kind}/{slice_name}", rule, level, margin, count)
        for (kind, slice_name), level, margin, count in zip(
            names, levels, margins, counts, strict=True
        )
    ]


def _paired_check(
    name: str, rule: PairedRule, level: float, margin: float, count: tuple[int, int, int]
) -> Check:
    broke, fixed, n = count
    observed = (broke - fixed) / n
    bound = tango_upper(broke, fixed, n, level)
    seen = (
        f"{name}: {broke} broke, {fixed} fixed of {n}, {rule.score}; net loss {observed:.2%},"
        f" upper bound {bound:.2%} at {1 - level:.4g} confidence, margin {margin:.2%}"
    )
    if isinstance(rule, DriftRule):
        consumed = budget_consumed(broke, fixed, n, level, margin)
        seen += f"; {consumed:.0%} of the drift budget consumed"
    if bound < margin:
        return Check(name, Outcome.PASS, observed, bound, margin, n, None, seen)
    if observed >= margin:
        return Check(name, Outcome.FAIL, observed, bound, margin, n, None, seen)
    best = needed_for_margin(margin, level)
    if rule.when_few == "observed" and best is not None and n < best:
        seen += f"; {_items(n)} cannot show it (that takes {best}), so the plain loss was judged"
        return Check(name, Outcome.PASS, observed, bound, margin, n, best, seen)
    needed = needed_for_margin(margin, level, broke / n, fixed / n)
    seen += _more(needed)
    return Check(name, Outcome.INCONCLUSIVE, observed, bound, margin, n, needed, seen)


def _text_checks(
    rule: DriftRule, to_base: Sequence[tuple[ProbeResult, ProbeResult]]
) -> list[Check]:
    pairs = [(a, b) for a, b in to_base if a.kind is ProbeKind.PERPLEXITY]
    checks = []
    n = sum(a.tokens for a, _ in pairs)
    for name, limit in (("drift.perplexity", rule.perplexity_ratio), ("drift.kl", rule.kl)):
        if limit is None:
            continue
        if n == 0:
            checks.append(_empty(name, rule, "text"))
            continue
        if name == "drift.kl":
            value = mean_kl([a for a, _ in pairs])
            what = "KL(base ‖ version) on text, nats per token"
        else:
            now, then = perplexity([a for a, _ in pairs]), perplexity([b for _, b in pairs])
            value = None if now is None or not then else now / then
            what = "perplexity on text against the base's"
        ok = value is not None and value <= limit
        outcome = Outcome.PASS if ok else Outcome.FAIL
        shown = "not measured" if value is None else f"{value:.4g}"
        sentence = f"{what}: {shown} over {n} tokens, {limit:.4g} allowed"
        checks.append(Check(name, outcome, _finite(value), None, limit, n, None, sentence))
    return checks
