"""The gate's checks: invariants, shares with a lower bound, paired non-inferiority, text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from mend_core.errors import PolicyInvalid
from mend_core.probes.decision import Check, Outcome, Update
from mend_core.probes.policy import DriftRule, PairedRule, Policy, Score, ShareRule
from mend_core.probes.results import ProbeResult, mean_kl, perplexity
from mend_core.probes.statistics import (
    design_effect,
    holm_levels,
    needed_for_margin,
    needed_for_share,
    noninferiority_p,
    tango_upper,
    wilson_lower,
)
from mend_core.probes.suites import (
    GOLDEN_KINDS,
    RETAINED_SLICE,
    STANDING,
    ProbeKind,
    is_standing,
)

NAMED_LIMIT = 5
"""Items a sentence names before it says how many more there are."""


def passes(result: ProbeResult, score: Score) -> bool:
    """Free-running verdict, or the teacher-forced one where the kind has one."""
    if score == "free" or result.passed_forced is None:
        return result.passed
    return result.passed_forced


def not_taken(candidate: Sequence[ProbeResult], score: Score) -> tuple[str, ...]:
    """New edits whose own prompt is not answered with the target."""
    return tuple(
        r.edit_id if r.edit_id is not None else r.item_id
        for r in candidate
        if r.kind is ProbeKind.EDIT and r.slice != RETAINED_SLICE and not passes(r, score)
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


def hard_checks(
    policy: Policy,
    candidate: Sequence[ProbeResult],
    to_parent: Sequence[tuple[ProbeResult, ProbeResult]],
    to_base: Sequence[tuple[ProbeResult, ProbeResult]],
    update: Update | None,
) -> list[Check]:
    """Invariants: what no sample size excuses."""
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
        missed = not_taken(candidate, hard.own_prompt_score)
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


def share_check(name: str, rule: ShareRule, alpha: float, results: Sequence[ProbeResult]) -> Check:
    """A share that must be shown to lie above its target (Wilson's lower bound).

    Raises:
        PolicyInvalid: The rule counts teacher-forced verdicts, and there are none.
    """
    if not results:
        return _empty(name, rule, "edit prompts" if name == "success" else "paraphrases")
    _demand_forced(name, rule.score, results)
    clusters: dict[str, list[bool]] = {}
    for r in results:
        clusters.setdefault(r.edit_id or r.item_id, []).append(passes(r, rule.score))
    n = len(results)
    successes = sum(sum(group) for group in clusters.values())
    # Paraphrases of one edit stand or fall together; they count for fewer than they are.
    effect = design_effect(clusters.values())
    observed = successes / n
    bound = wilson_lower(successes / effect, n / effect, alpha)
    seen = f"{name}: {successes} of {n} ({observed:.1%}), {rule.score}"
    seen += f"; lower bound {bound:.1%} at {1 - alpha:.3g} confidence"
    seen += f" (design effect {effect:.2f})" if effect > 1 else ""
    if rule.target is None:
        seen += "; the policy demands nothing of it"
        return Check(name, Outcome.REPORTED, observed, bound, None, n, None, seen)
    seen += f", target {rule.target:.1%}"
    best = needed_for_share(rule.target, 1.0, alpha)
    few = best is not None and n < best
    needed, outcome = None, Outcome.INCONCLUSIVE
    if few and rule.when_few == "report":
        seen += f"; {_items(n)} cannot show it (that takes {best}), so nothing is judged by it"
        needed, outcome = best, Outcome.REPORTED
    elif bound >= rule.target:
        outcome = Outcome.PASS
    elif observed < rule.target:
        outcome = Outcome.FAIL
    elif few and rule.when_few == "observed":
        seen += f"; {_items(n)} cannot show it (that takes {best}), so the plain share was judged"
        needed, outcome = best, Outcome.PASS
    else:
        needed = needed_for_share(rule.target, observed, alpha)
        needed = None if needed is None else round(needed * effect)
        seen += _more(needed)
    return Check(name, outcome, observed, bound, rule.target, n, needed, seen)


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


@dataclass(slots=True)
class _Ring:
    """The paired verdicts of one check: a slice, or all slices of the standing suite together."""

    margin: float | None
    broke: int = 0
    fixed: int = 0
    n: int = 0
    slices: Counter[str] = field(default_factory=Counter)
    clusters: dict[str, list[bool]] = field(default_factory=dict)

    def add(self, result: ProbeResult, *, now: bool, then: bool) -> None:
        lost = then and not now
        self.broke += lost
        self.fixed += now and not then
        self.n += 1
        self.slices[result.slice] += lost
        # Neighbours of one edit stand or fall together; they count for fewer than they are.
        self.clusters.setdefault(result.edit_id or result.item_id, []).append(lost)

    def counts(self) -> tuple[float, float, float]:
        """Broke, fixed and n, in items that count whole."""
        effect = design_effect(self.clusters.values())
        return self.broke / effect, self.fixed / effect, self.n / effect

    def sentence(self, name: str, score: Score, level: float) -> tuple[float, str]:
        """The upper bound of the loss, and what was seen."""
        bound = tango_upper(*self.counts(), level)
        effect = design_effect(self.clusters.values())
        seen = (
            f"{name}: {self.broke} broke, {self.fixed} fixed of {self.n}, {score}; net loss"
            f" {(self.broke - self.fixed) / self.n:.2%}, upper bound {bound:.2%}"
            f" at {1 - level:.4g} confidence"
        )
        seen += f" (design effect {effect:.2f})" if effect > 1 else ""
        if self.broke and len(self.slices) > 1:
            worst = (
                f"{slice_name.partition('/')[2]} {lost}"
                for slice_name, lost in self.slices.most_common(NAMED_LIMIT)
                if lost
            )
            seen += f"; broke most in: {', '.join(worst)}"
        return bound, seen


def paired_checks(
    rule_name: str,
    rule: PairedRule,
    alpha: float,
    pairs: Sequence[tuple[ProbeResult, ProbeResult]],
) -> list[Check]:
    """One non-inferiority check per kind and slice, Holm's levels shared between those judged.

    The slices of the standing suite are one check together: a kind has too few questions to be
    judged by itself, and its losses are named.

    Args:
        rule_name: Begins each check's name.
        rule: Margins and what counts.
        alpha: Error level shared by all of them.
        pairs: (candidate's result, result it is compared with).

    Raises:
        PolicyInvalid: The rule counts teacher-forced verdicts, and there are none.
    """
    if not pairs:
        return [_empty(rule_name, rule, "locality or capability prompts")]
    _demand_forced(rule_name, rule.score, [a for a, _ in pairs])
    rings: dict[str, _Ring] = {}
    for after, before in pairs:
        slice_name = STANDING if is_standing(after.slice) else after.slice
        rings.setdefault(f"{after.kind.value}/{slice_name}", _Ring(rule.margin_of(slice_name))).add(
            after, now=passes(after, rule.score), then=passes(before, rule.score)
        )
    names = sorted(rings)
    p_values = {
        name: noninferiority_p(*rings[name].counts(), ring.margin)
        for name in names
        if (ring := rings[name]).margin is not None and not _too_few(rule, alpha, ring)
    }
    levels = dict(zip(p_values, holm_levels(list(p_values.values()), alpha), strict=True))
    return [
        _judged(f"{rule_name}/{name}", rule, levels[name], rings[name])
        if name in levels
        else _told(f"{rule_name}/{name}", rule, alpha, rings[name])
        for name in names
    ]


def _too_few(rule: PairedRule, alpha: float, ring: _Ring) -> bool:
    """Whether a slice has too few items for the policy to judge by it."""
    best = None if ring.margin is None else needed_for_margin(ring.margin, alpha)
    return rule.when_few == "report" and best is not None and ring.n < best


def _told(name: str, rule: PairedRule, alpha: float, ring: _Ring) -> Check:
    """A slice that is told and not judged."""
    bound, seen = ring.sentence(name, rule.score, alpha)
    best = None
    if ring.margin is None:
        seen += "; the policy demands nothing of it"
    else:
        best = needed_for_margin(ring.margin, alpha)
        seen += f", margin {ring.margin:.2%}; {_items(ring.n)} cannot show it (that takes {best}),"
        seen += " so nothing is judged by it"
    observed = (ring.broke - ring.fixed) / ring.n
    return Check(name, Outcome.REPORTED, observed, bound, ring.margin, ring.n, best, seen)


def _judged(name: str, rule: PairedRule, level: float, ring: _Ring) -> Check:
    assert ring.margin is not None, "a slice without a margin is told, not judged"
    margin, n = ring.margin, ring.n
    observed = (ring.broke - ring.fixed) / n
    bound, seen = ring.sentence(name, rule.score, level)
    seen += f", margin {margin:.2%}"
    if bound < margin:
        return Check(name, Outcome.PASS, observed, bound, margin, n, None, seen)
    if observed >= margin:
        return Check(name, Outcome.FAIL, observed, bound, margin, n, None, seen)
    best = needed_for_margin(margin, level)
    if rule.when_few == "observed" and best is not None and n < best:
        seen += f"; {_items(n)} cannot show it (that takes {best}), so the plain loss was judged"
        return Check(name, Outcome.PASS, observed, bound, margin, n, best, seen)
    needed = needed_for_margin(margin, level, ring.broke / n, ring.fixed / n)
    whole = n / ring.counts()[2]
    needed = None if needed is None else round(needed * whole)
    seen += _more(needed)
    return Check(name, Outcome.INCONCLUSIVE, observed, bound, margin, n, needed, seen)


def text_checks(rule: DriftRule, to_base: Sequence[tuple[ProbeResult, ProbeResult]]) -> list[Check]:
    """Perplexity and KL on text, against the base's."""
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
