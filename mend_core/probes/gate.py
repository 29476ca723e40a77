"""The gate: a policy and paired probe results in, pass / fail / inconclusive out.

Three outcomes, because "not shown to be harmful" is not "shown to be harmless":

* **pass**: the confidence bound is on the right side of the threshold;
* **fail**: an invariant is broken, or the observed rate itself is on the wrong side of the
  threshold, so that no larger suite with this result could pass;
* **inconclusive**: the observed rate is on the right side and the bound is not. More probe items
  could settle it; each such check says how many.

A check may also only *report*: where the policy demands nothing of a slice, or where it has too few
items to be judged by. And a decision names what was asked, and what was not.

Paired checks are non-inferiority tests, slice by slice: Tango's upper bound of the net loss must
stay below the margin. Holm's step-down shares the error level between the slices of one rule, so
that "every slice listed as safe is safe" holds at that level.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mend_core.probes.checks import (
    hard_checks,
    not_taken,
    paired_checks,
    passes,
    share_check,
    text_checks,
)
from mend_core.probes.decision import Flip, GateDecision, Outcome, Update
from mend_core.probes.policy import Policy, Score
from mend_core.probes.results import ProbeResult, pair_up
from mend_core.probes.suites import (
    GIVEN_SLICE,
    RELATION_SLICE,
    RETAINED_SLICE,
    SUBJECT_SLICE,
    ProbeKind,
    is_standing,
)


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
    checks = hard_checks(policy, candidate, to_parent, to_base, update)
    edits = [r for r in candidate if r.kind is ProbeKind.EDIT]
    paraphrases = [r for r in candidate if r.kind is ProbeKind.PARAPHRASE]
    if policy.success is not None:
        checks.append(share_check("success", policy.success, policy.alpha, edits))
    if policy.generality is not None:
        checks.append(share_check("generality", policy.generality, policy.alpha, paraphrases))
    if policy.parent is not None:
        pairs = [(a, b) for a, b in to_parent if _is_paired(a) or a.slice == RETAINED_SLICE]
        checks += paired_checks("parent", policy.parent, policy.alpha, pairs)
    if policy.drift is not None:
        number = 1 if update is None else update.number
        pairs = [(a, b) for a, b in to_base if _is_paired(a)]
        checks += paired_checks("drift", policy.drift, policy.drift_alpha(number), pairs)
        checks += text_checks(policy.drift, to_base)
    outcomes = {check.outcome for check in checks}
    outcome = next((o for o in (Outcome.FAIL, Outcome.INCONCLUSIVE) if o in outcomes), Outcome.PASS)
    flips = [] if parent is None else find_flips(candidate, parent, against="parent")
    flips += find_flips(candidate, base, against="base")
    return GateDecision(
        outcome=outcome,
        checks=tuple(checks),
        not_taken=not_taken(candidate, policy.hard.own_prompt_score),
        flips=tuple(flips),
        policy_digest=policy.digest,
        suite_digest=suite_digest,
        asked=count_asked(candidate),
    )


_NEIGHBOURS = {
    GIVEN_SLICE: "locality prompts that came with the edits",
    RELATION_SLICE: "the same statement about other subjects",
    SUBJECT_SLICE: "other statements about the same subject",
}

_WORDS = {
    ProbeKind.PARAPHRASE: "paraphrases",
    ProbeKind.PORTABILITY: "conclusions from the edits",
    ProbeKind.PROTECTED: "protected prompts",
    ProbeKind.CAPABILITY: "questions with known answers",
    ProbeKind.MUST_CONTAIN: "golden prompts",
    ProbeKind.MUST_NOT_CONTAIN: "golden prompts",
    ProbeKind.PERPLEXITY: "texts",
    ProbeKind.HEALTH: "openings for free text",
}


def _word(result: ProbeResult) -> str:
    """What an item is called in a list of what was asked."""
    if result.kind is ProbeKind.EDIT:
        return "earlier edits" if result.slice == RETAINED_SLICE else "new edits"
    if result.kind is ProbeKind.LOCALITY:
        if is_standing(result.slice):
            return "everyday questions"
        return _NEIGHBOURS.get(result.slice, "the model's own suite")
    return _WORDS[result.kind]


ASKABLE = (
    "new edits",
    "earlier edits",
    "paraphrases",
    *_NEIGHBOURS.values(),
    "everyday questions",
    "the model's own suite",
    *dict.fromkeys(_WORDS[k] for k in _WORDS if k is not ProbeKind.PARAPHRASE),
)
"""All that can be asked, in the words a person reads."""


def count_asked(results: Sequence[ProbeResult]) -> dict[str, int]:
    """How many items of each sort a run asked; 0 for what it did not ask."""
    found = Counter(_word(result) for result in results)
    return {word: found[word] for word in ASKABLE}


def find_flips(
    candidate: Sequence[ProbeResult], reference: Sequence[ProbeResult], *, against: str
) -> list[Flip]:
    """Items whose verdict differs from the reference run's, broken ones first."""
    flips = []
    for after, before in pair_up(candidate, reference):
        if after.kind is ProbeKind.PERPLEXITY:
            continue
        score: Score = "free" if after.passed != before.passed else "forced"
        now, then = passes(after, score), passes(before, score)
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


def _is_paired(result: ProbeResult) -> bool:
    return result.kind in {ProbeKind.LOCALITY, ProbeKind.CAPABILITY}
