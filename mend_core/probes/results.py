"""What a probe run says: one result per item, and the scores of a run.

Pure values (no torch), with `to_dict`/`from_dict`, so that the ledger can keep them and reports,
gate and bisect can read them back years later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from mend_core.errors import SuiteInvalid
from mend_core.probes.statistics import wilson_interval
from mend_core.probes.suites import (
    GIVEN_SLICE,
    GOLDEN_KINDS,
    RELATION_SLICE,
    RETAINED_SLICE,
    STANDING,
    SUBJECT_SLICE,
    TARGET_KINDS,
    Compare,
    ProbeItem,
    ProbeKind,
    is_standing,
)

CONFIDENCE_DEFAULT = 0.95
"""Two-sided confidence of the intervals shown beside every rate."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How one version answered one item.

    Attributes:
        item_id: Which item.
        kind: Its kind.
        slice: Its slice.
        edit_id: The edit it was built from, if any.
        prompt: What was asked.
        expect: What was expected: the target, the golden strings, or for locality and protected
            items the base's own answer.
        answer: The free-running greedy answer, up to its natural stop.
        answer_tokens: Its token ids.
        passed: Verdict of the free-running answer (for perplexity items: the loss is finite).
        passed_forced: Teacher-forced verdict: every expected token is the arg max given the ones
            before it. None where nothing is expected.
        token_accuracy: Fraction of expected tokens that are the arg max; None likewise.
        tokens: Number of expected tokens (perplexity: of predicted tokens).
        nll: Summed negative log-likelihood of those tokens in nats; None where there are none or
            where a logit was not finite.
        kl: Mean KL(base ‖ this version) per token of a perplexity item, nats; 0 for the base.
        finite: No logit was NaN or Inf. A result that is not finite never passes.
        repetition: Share of repeated 3-grams in a health item's answer.
        never_for_tuning: The item is a canary.
        max_new_tokens: Longest answer that was asked for.
        compare: How an answer that must not change was compared; see `ProbeItem`.
    """

    item_id: str
    kind: ProbeKind
    slice: str
    edit_id: str | None
    prompt: str
    expect: tuple[str, ...]
    answer: str
    answer_tokens: tuple[int, ...]
    passed: bool
    passed_forced: bool | None = None
    token_accuracy: float | None = None
    tokens: int = 0
    nll: float | None = None
    kl: float | None = None
    finite: bool = True
    repetition: float | None = None
    never_for_tuning: bool = False
    max_new_tokens: int = 0
    compare: Compare = "whole"

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-ready values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {
            "kind": self.kind.value,
            "expect": list(self.expect),
            "answer_tokens": list(self.answer_tokens),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Read back what `to_dict` wrote."""
        values = dict(record)
        values["kind"] = ProbeKind(values["kind"])
        values["expect"] = tuple(values["expect"])
        values["answer_tokens"] = tuple(values["answer_tokens"])
        return cls(**values)


Question = tuple[str, str, tuple[str, ...], int, str]
"""What a result depends on beside the weights: kind, prompt, expected texts, longest answer, and
how it is compared."""


def question(asked: ProbeItem | ProbeResult) -> Question:
    """What an item asks, or a result answers: results of equal questions are interchangeable.

    Where the base's own answer is what is expected, `expect` is no part of the question: an item
    has none yet.
    """
    told = asked.kind in TARGET_KINDS | GOLDEN_KINDS
    expect = tuple(asked.expect) if told else ()
    return (asked.kind.value, asked.prompt, expect, asked.max_new_tokens, asked.compare)


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of items with its two-sided Wilson interval; value and bounds are None for n = 0."""

    successes: int
    n: int
    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, verdicts: Iterable[bool]) -> Self:
        """Count verdicts."""
        seen = list(verdicts)
        n, successes = len(seen), sum(seen)
        if n == 0:
            return cls(0, 0, None, None, None)
        low, high = wilson_interval(successes, n, CONFIDENCE_DEFAULT)
        return cls(successes, n, successes / n, low, high)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class Family:
    """ES, GS, LS and portability counted one way, with their harmonic mean.

    Attributes:
        edit_success: Mean over new edits' own prompts; None where there are none.
        generality: Mean over paraphrases.
        locality: Mean over locality and protected prompts, against the base's own answers.
        portability: Mean over portability prompts.
        harmonic_mean: Of the first three; None unless all three were measured.
    """

    edit_success: float | None
    generality: float | None
    locality: float | None
    portability: float | None
    harmonic_mean: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one run; teacher-forced and free-running always side by side.

    Attributes:
        forced_token: Teacher-forced, mean token accuracy (what most papers print).
        forced_exact: Teacher-forced, whole answer right.
        free: Free-running greedy answers, the ones a user would see.
        rates: Free-running rate with interval per kind, e.g. "paraphrase". Locality, here and in
            the families, is of the prompts that people gave: pooled with hundreds of everyday
            answers, it would look well wherever most of what was asked is far away.
        rings: Free-running rate of what must stay, ring by ring: "neighbour/given",
            "neighbour/relation", "neighbour/subject", "standing".
        rates_forced: Teacher-forced exact rate with interval per kind.
        slices: Free-running rate per "kind/slice".
        perplexity: exp of the token-weighted mean loss over perplexity items.
        perplexity_ratio: That, divided by the reference's on the same items.
        kl: Token-weighted mean KL(base ‖ version) over perplexity items, nats per token.
        not_finite: Items with NaN or Inf in their logits.
    """

    forced_token: Family
    forced_exact: Family
    free: Family
    rates: dict[str, Rate]
    rates_forced: dict[str, Rate]
    slices: dict[str, Rate]
    rings: dict[str, Rate]
    perplexity: float | None
    perplexity_ratio: float | None
    kl: float | None
    not_finite: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "forced_token": self.forced_token.to_dict(),
            "forced_exact": self.forced_exact.to_dict(),
            "free": self.free.to_dict(),
            "rates": {name: rate.to_dict() for name, rate in self.rates.items()},
            "rates_forced": {name: rate.to_dict() for name, rate in self.rates_forced.items()},
            "slices": {name: rate.to_dict() for name, rate in self.slices.items()},
            "rings": {name: rate.to_dict() for name, rate in self.rings.items()},
            "perplexity": _finite(self.perplexity),
            "perplexity_ratio": _finite(self.perplexity_ratio),
            "kl": _finite(self.kl),
            "not_finite": self.not_finite,
        }


def _finite(value: float | None) -> float | None:
    """JSON has no NaN or Inf: such a value is null, and `not_finite` says why."""
    return value if value is not None and math.isfinite(value) else None


def summarise(
    results: Sequence[ProbeResult], reference: Sequence[ProbeResult] | None = None
) -> Scores:
    """Count a run.

    Args:
        results: One version's results.
        reference: The base's results on the same suite, for the perplexity ratio.

    Raises:
        SuiteInvalid: The reference lacks a perplexity item.
    """
    current = [r for r in results if r.slice != RETAINED_SLICE and not _made_by_rule(r)]
    texts = [r for r in results if r.kind is ProbeKind.PERPLEXITY]
    ppl = perplexity(texts)
    ratio: float | None = None
    if reference is not None and texts:
        pairs = pair_up(texts, reference)
        before = perplexity([b for _, b in pairs])
        ratio = ppl / before if ppl is not None and before is not None else None
    by_kind = {kind: [r for r in current if r.kind is kind] for kind in ProbeKind}
    names = sorted({(r.kind.value, r.slice) for r in results if r.kind is not ProbeKind.PERPLEXITY})
    return Scores(
        forced_token=_family(current, lambda r: r.token_accuracy),
        forced_exact=_family(
            current, lambda r: None if r.passed_forced is None else float(r.passed_forced)
        ),
        free=_family(current, lambda r: float(r.passed)),
        rates={
            kind.value: Rate.of(r.passed for r in found)
            for kind, found in by_kind.items()
            if found and kind is not ProbeKind.PERPLEXITY
        },
        rates_forced={
            kind.value: Rate.of(bool(r.passed_forced) for r in found)
            for kind, found in by_kind.items()
            if found and all(r.passed_forced is not None for r in found)
        },
        slices={
            f"{kind}/{name}": Rate.of(
                r.passed for r in results if (r.kind.value, r.slice) == (kind, name)
            )
            for kind, name in names
        },
        rings={
            ring: Rate.of(r.passed for r in found)
            for ring in RINGS
            if (found := [r for r in results if _ring(r) == ring])
        },
        perplexity=ppl,
        perplexity_ratio=ratio,
        kl=mean_kl(texts),
        not_finite=sum(not r.finite for r in results),
    )


RINGS = (GIVEN_SLICE, RELATION_SLICE, SUBJECT_SLICE, STANDING)
"""What must stay, from what a person gave and what lies near the edits to everyday answers."""


def _ring(result: ProbeResult) -> str | None:
    if result.kind is not ProbeKind.LOCALITY:
        return None
    return STANDING if is_standing(result.slice) else result.slice


def _made_by_rule(result: ProbeResult) -> bool:
    """Whether an item was made by the service, not given by a person."""
    return _ring(result) in {RELATION_SLICE, SUBJECT_SLICE, STANDING}


def _family(results: Sequence[ProbeResult], value: Callable[[ProbeResult], float | None]) -> Family:
    def mean(*kinds: ProbeKind) -> float | None:
        seen = [v for r in results if r.kind in kinds and (v := value(r)) is not None]
        return math.fsum(seen) / len(seen) if seen else None

    success = mean(ProbeKind.EDIT)
    generality = mean(ProbeKind.PARAPHRASE)
    locality = mean(ProbeKind.LOCALITY, ProbeKind.PROTECTED)
    return Family(
        edit_success=success,
        generality=generality,
        locality=locality,
        portability=mean(ProbeKind.PORTABILITY),
        harmonic_mean=harmonic_mean(success, generality, locality),
    )


def harmonic_mean(*values: float | None) -> float | None:
    """Harmonic mean; 0 where one value is 0, None where one was not measured."""
    known = [v for v in values if v is not None]
    if not known or len(known) < len(values):
        return None
    if min(known) <= 0:
        return 0.0
    return len(known) / math.fsum(1 / v for v in known)


def perplexity(texts: Sequence[ProbeResult]) -> float | None:
    """exp(total loss / total tokens) of perplexity results; None without tokens, inf on NaN."""
    tokens = sum(r.tokens for r in texts)
    if tokens == 0:
        return None
    if any(r.nll is None for r in texts if r.tokens):
        return math.inf
    mean = math.fsum(r.nll for r in texts if r.nll is not None) / tokens
    return math.exp(min(mean, 700.0))  # e^709 overflows a double; such a model is broken anyway


def mean_kl(texts: Sequence[ProbeResult]) -> float | None:
    """Token-weighted mean KL of perplexity results; None without tokens, inf on NaN."""
    tokens = sum(r.tokens for r in texts)
    if tokens == 0:
        return None
    if any(r.kl is None for r in texts if r.tokens):
        return math.inf
    return math.fsum(r.kl * r.tokens for r in texts if r.kl is not None) / tokens


def pair_up(
    candidate: Sequence[ProbeResult], reference: Sequence[ProbeResult]
) -> list[tuple[ProbeResult, ProbeResult]]:
    """Match results of two runs item by item, in the candidate's order.

    Raises:
        SuiteInvalid: The reference run lacks an item: they were not run on the same suite.
    """
    known = {r.item_id: r for r in reference}
    missing = [r.item_id for r in candidate if r.item_id not in known]
    if missing:
        raise SuiteInvalid(
            f"probe item {missing[0]!r} was not asked of the version compared with"
            f" ({len(missing)} missing); run both on the same suite"
        )
    return [(r, known[r.item_id]) for r in candidate]
