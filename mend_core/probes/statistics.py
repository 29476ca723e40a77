"""The statistics of the gate: small, exact where it can be, no SciPy.

* A share (success, generality): Wilson score interval (Wilson 1927), one- or two-sided.
* A paired difference, "did this version break more than it fixed": the score interval of Tango
  (Statistics in Medicine 17, 1998, 891-908). It stays honest with zero losses, where the usual
  normal interval has width zero.
* Exact McNemar, Holm's step-down, sample sizes and power, and a way to spend one error budget over
  an endless line of versions.

In all paired functions `broke` counts items that passed before and fail now, `fixed` the reverse,
`n` all items asked; the loss is (broke - fixed) / n. Counts may be fractions where a sample size
is being searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import NormalDist

from mend_core.errors import ProbeError

SEARCH_LIMIT = 10**9
"""Sample sizes beyond this are reported as "no n would do"."""

_BISECTIONS = 200  # enough to exhaust a double from any bracket we start with


def z_value(alpha: float) -> float:
    """The standard normal value exceeded with probability alpha (one-sided).

    Raises:
        ProbeError: alpha is not strictly between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ProbeError(f"an error level must lie strictly between 0 and 1, got {alpha}")
    return -NormalDist().inv_cdf(alpha)


def _check_share(successes: float, n: float) -> None:
    if n <= 0 or not 0 <= successes <= n:
        raise ProbeError(f"{successes} successes of {n} items is not a share")


def _wilson(successes: float, n: float, z: float, sign: int) -> float:
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return min(1.0, max(0.0, (centre + sign * half) / (1 + z * z / n)))


def wilson_lower(successes: float, n: float, alpha: float) -> float:
    """One-sided lower confidence bound of a share, at error level alpha."""
    _check_share(successes, n)
    return 0.0 if successes == 0 else _wilson(successes, n, z_value(alpha), -1)


def wilson_upper(successes: float, n: float, alpha: float) -> float:
    """One-sided upper confidence bound of a share, at error level alpha."""
    _check_share(successes, n)
    return 1.0 if successes == n else _wilson(successes, n, z_value(alpha), +1)


def wilson_interval(successes: float, n: float, confidence: float) -> tuple[float, float]:
    """Two-sided Wilson interval of a share at this confidence, e.g. 0.95."""
    alpha = (1 - confidence) / 2
    return wilson_lower(successes, n, alpha), wilson_upper(successes, n, alpha)


def _check_pairs(broke: float, fixed: float, n: float) -> None:
    if n <= 0 or broke < 0 or fixed < 0 or broke + fixed > n * (1 + 1e-12):
        raise ProbeError(f"{broke} broke and {fixed} fixed of {n} items is not a paired count")


def tango_score(broke: float, fixed: float, n: float, delta: float) -> float:
    """Tango's score statistic of the hypothesis that the true loss is delta; falls as delta grows.

    T = (b - c - n·δ) / √(n·(2·q + δ(1 - δ))), q the restricted maximum-likelihood estimate of the
    probability of "fixed", the root of 2n·q² + (-b - c + (2n - b + c)δ)·q - c·δ(1 - δ) = 0.
    """
    _check_pairs(broke, fixed, n)
    gap = broke - fixed - n * delta
    linear = -broke - fixed + (2 * n - broke + fixed) * delta
    constant = -fixed * delta * (1 - delta)
    root = math.sqrt(max(0.0, linear * linear - 8 * n * constant))
    # Of the two equal forms of the root, the one that does not subtract near-equal numbers.
    divisor = linear + root
    q = -2 * constant / divisor if linear > 0 and divisor > 0 else (root - linear) / (4 * n)
    variance = n * (2 * max(0.0, q) + delta * (1 - delta))
    if variance <= 0:
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def tango_upper(broke: float, fixed: float, n: float, alpha: float) -> float:
    """One-sided upper confidence bound of the loss (broke - fixed) / n, at error level alpha."""
    _check_pairs(broke, fixed, n)
    z = z_value(alpha)
    low, high = (broke - fixed) / n, 1.0
    return _bisect(lambda delta: tango_score(broke, fixed, n, delta) > -z, low, high)


def tango_lower(broke: float, fixed: float, n: float, alpha: float) -> float:
    """One-sided lower confidence bound of the loss, at error level alpha."""
    return -tango_upper(fixed, broke, n, alpha)


def tango_interval(broke: float, fixed: float, n: float, confidence: float) -> tuple[float, float]:
    """Two-sided score interval of the loss at this confidence."""
    alpha = (1 - confidence) / 2
    return tango_lower(broke, fixed, n, alpha), tango_upper(broke, fixed, n, alpha)


def noninferiority_p(broke: float, fixed: float, n: float, margin: float) -> float:
    """P-value of "the true loss is at least margin": small means shown to be harmless."""
    return NormalDist().cdf(tango_score(broke, fixed, n, margin))


def _bisect(goes_on: Callable[[float], bool], low: float, high: float) -> float:
    """The point in [low, high] where a predicate turns false; high if it never does."""
    if goes_on(high):
        return high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if goes_on(middle):
            low = middle
        else:
            high = middle
    return high


def mcnemar_p(broke: int, fixed: int) -> float:
    """Exact one-sided McNemar: chance of so many broken were breaking and fixing equally likely."""
    total = broke + fixed
    if broke < 0 or fixed < 0:
        raise ProbeError(f"{broke} broke and {fixed} fixed is not a paired count")
    tail = term = math.comb(total, broke)
    for k in range(broke, total):
        term = term * (total - k) // (k + 1)
        tail += term
    # Whole numbers of any size divide exactly rounded; only the ratio has to fit a double.
    return tail / (1 << total)


def mcnemar_needed(fixed: int, alpha: float) -> int:
    """Fewest broken items that exact one-sided McNemar calls a regression, given `fixed`."""
    broke = fixed
    while mcnemar_p(broke, fixed) > alpha:
        broke += 1
    return broke


def power_of_count(n: int, rate: float, at_least: int) -> float:
    """Chance that n items with this true failure rate show at least so many failures."""
    if at_least <= 0:
        return 1.0
    if rate <= 0:
        return 0.0
    if rate >= 1:
        return 1.0 if n >= at_least else 0.0
    log_terms = (
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(rate)
        + (n - k) * math.log1p(-rate)
        for k in range(min(at_least, n + 1))
    )
    return min(1.0, max(0.0, 1 - math.fsum(math.exp(term) for term in log_terms)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given (Holm 1979)."""
    count = len(p_values)
    order = sorted(range(count), key=lambda i: p_values[i])
    adjusted = [0.0] * count
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def holm_levels(p_values: Sequence[float], alpha: float) -> list[float]:
    """The error level Holm's step-down tests each hypothesis at.

    alpha / (hypotheses left) in order of the p-values, up to the first one that is not rejected;
    those after it stay at its level, and so are not rejected either. A confidence bound taken at
    this level agrees with Holm's decision.
    """
    count = len(p_values)
    order = sorted(range(count), key=lambda i: p_values[i])
    levels = [0.0] * count
    stopped_at: float | None = None
    for rank, index in enumerate(order):
        level = alpha / (count - rank) if stopped_at is None else stopped_at
        levels[index] = level
        if stopped_at is None and p_values[index] > level:
            stopped_at = level
    return levels


def spent_alpha(alpha: float, number: int) -> float:
    """Error level of the number-th test (from 1) of an endless line that together cost alpha.

    alpha · 6 / (π² · number²): the levels sum to alpha (union bound, no independence needed), so a
    promise against the base holds for all versions together, not for each one apart.
    """
    if number < 1:
        raise ProbeError(f"tests are numbered from 1, got {number}")
    return alpha * 6 / (math.pi**2 * number**2)


def budget_consumed(broke: float, fixed: float, n: float, alpha: float, budget: float) -> float:
    """Share of a drift budget that the upper bound of the loss uses up; more than 1 is over it."""
    return max(0.0, tango_upper(broke, fixed, n, alpha)) / budget


def design_effect(groups: Iterable[Sequence[bool]]) -> float:
    """How much clustered items (paraphrases of one edit) widen an interval; at least 1.

    The cluster-robust variance of the mean over its binomial variance. 1 where all items agree,
    since nothing can be estimated then.
    """
    seen = [list(group) for group in groups if group]
    n = sum(len(group) for group in seen)
    if n == 0:
        return 1.0
    p = sum(sum(group) for group in seen) / n
    binomial = p * (1 - p) * n
    if binomial <= 0 or len(seen) <= 1:
        return 1.0
    squares = math.fsum((sum(group) - p * len(group)) ** 2 for group in seen)
    return max(1.0, squares / binomial)


def needed_for_share(target: float, observed: float, alpha: float) -> int | None:
    """Items after which a share observed at this rate has its Wilson lower bound at the target.

    None where no number would do (the observed rate is not above the target).
    """
    if observed <= target:
        return None
    return _smallest(lambda n: wilson_lower(observed * n, n, alpha) >= target)


def needed_for_margin(
    margin: float, alpha: float, broke: float = 0.0, fixed: float = 0.0
) -> int | None:
    """Items after which Tango's upper bound falls below the margin.

    Args:
        margin: Largest loss that is still harmless.
        alpha: One-sided error level.
        broke: Share of items that break, as observed; 0 for the best case.
        fixed: Share of items that get fixed.

    Returns:
        The number, or None where none would do (the observed loss is not below the margin).
    """
    if broke - fixed >= margin:
        return None
    return _smallest(lambda n: tango_upper(broke * n, fixed * n, n, alpha) < margin)


def _smallest(enough: Callable[[int], bool]) -> int | None:
    """Smallest n for which a monotone predicate holds, by doubling and halving."""
    high = 1
    while not enough(high):
        high *= 2
        if high > SEARCH_LIMIT:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def ratio_interval(
    pairs: Sequence[tuple[float, float]], confidence: float = 0.95
) -> tuple[float | None, float | None, float | None]:
    """Σx / Σt over clusters (texts) with its normal interval by linearisation.

    Args:
        pairs: (x, t) of each cluster, such as loss and tokens of each text.
        confidence: Two-sided.

    Returns:
        (value, low, high); no value without clusters or with nothing in them, no bounds from one.
    """
    total = sum(t for _, t in pairs)
    n = len(pairs)
    if total <= 0:
        return None, None, None
    value = sum(x for x, _ in pairs) / total
    if n < 2:  # noqa: PLR2004 - no spread in one
        return value, None, None
    spread = math.sqrt(n / (n - 1) * sum((x - value * t) ** 2 for x, t in pairs)) / total
    reach = z_value((1 - confidence) / 2) * spread
    return value, value - reach, value + reach
