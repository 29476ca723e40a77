"""The statistics against published values and properties."""

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mend_core.errors import ProbeError
from mend_core.probes import statistics as stats


def test_mcnemar_counts_needed_for_significance():
    assert stats.mcnemar_needed(0, 0.05) == 5
    assert stats.mcnemar_needed(0, 0.01) == 7
    assert stats.mcnemar_needed(5, 0.05) == 13


def test_mcnemar_is_a_binomial_tail_and_survives_large_counts():
    assert stats.mcnemar_p(3, 1) == pytest.approx(5 / 16)
    assert stats.mcnemar_p(0, 0) == 1
    assert stats.mcnemar_p(0, 9) == 1
    assert stats.mcnemar_p(2000, 2000) == pytest.approx(0.5, abs=0.01)
    assert 0 < stats.mcnemar_p(900, 700) < 1e-6


@pytest.mark.parametrize(
    ("n", "rate", "power"),
    [
        (300, 0.01, 0.18),
        (500, 0.01, 0.56),
        (1000, 0.01, 0.97),
        (300, 0.02, 0.72),
        (500, 0.02, 0.97),
    ],
)
def test_power_to_see_five_failures(n, rate, power):
    assert stats.power_of_count(n, rate, 5) == pytest.approx(power, abs=0.005)


@pytest.mark.parametrize(("n", "bound"), [(200, 0.0133), (500, 0.0054), (1000, 0.0027)])
def test_tango_bound_with_zero_losses(n, bound):
    assert stats.tango_upper(0, 0, n, 0.05) == pytest.approx(bound, abs=5e-5)
    z = stats.z_value(0.05)
    assert stats.tango_upper(0, 0, n, 0.05) == pytest.approx(z * z / (n + z * z))


def test_tango_bound_with_losses():
    assert stats.tango_upper(5, 1, 500, 0.05) == pytest.approx(0.0186, abs=5e-5)


def test_tango_interval_of_the_airway_example():
    # Fagerland, Lydersen & Laake, Statistics in Medicine 33 (2014): 1 and 7 discordant of 21.
    low, high = stats.tango_interval(1, 7, 21, 0.95)
    assert (low, high) == (pytest.approx(-0.517, abs=5e-4), pytest.approx(-0.026, abs=5e-4))


@pytest.mark.parametrize(("n", "bound"), [(50, 0.071), (200, 0.019), (500, 0.0076)])
def test_wilson_bound_with_no_failure(n, bound):
    low, high = stats.wilson_interval(0, n, 0.95)
    assert low == 0
    assert high == pytest.approx(bound, abs=5e-4)


def test_wilson_interval_of_a_textbook_share():
    low, high = stats.wilson_interval(8, 10, 0.95)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


counts = st.integers(1, 400).flatmap(
    lambda n: st.tuples(st.integers(0, n), st.just(n)).flatmap(
        lambda bn: st.tuples(st.just(bn[0]), st.integers(0, bn[1] - bn[0]), st.just(bn[1]))
    )
)
levels = st.floats(1e-6, 0.4)


@given(counts=counts, alpha=levels)
@settings(max_examples=300, deadline=None)
def test_tango_bounds_hold_the_estimate_and_solve_their_equation(counts, alpha):
    broke, fixed, n = counts
    upper = stats.tango_upper(broke, fixed, n, alpha)
    lower = stats.tango_lower(broke, fixed, n, alpha)
    estimate = (broke - fixed) / n
    assert -1 <= lower <= estimate + 1e-12
    assert estimate - 1e-12 <= upper <= 1
    if upper < 1 - 1e-9:
        assert stats.tango_score(broke, fixed, n, upper) == pytest.approx(
            -stats.z_value(alpha), abs=1e-5
        )


@given(counts=counts, alpha=levels, margin=st.floats(0.001, 0.9))
@settings(max_examples=300, deadline=None)
def test_bound_and_p_value_agree(counts, alpha, margin):
    upper = stats.tango_upper(*counts, alpha)
    p = stats.noninferiority_p(*counts, margin)
    if abs(upper - margin) > 1e-9:
        assert (upper < margin) == (p < alpha)


@given(counts=counts, alpha=levels)
@settings(max_examples=200, deadline=None)
def test_more_losses_raise_the_bound_and_more_items_lower_it(counts, alpha):
    broke, fixed, n = counts
    upper = stats.tango_upper(broke, fixed, n, alpha)
    if broke + fixed < n:
        assert stats.tango_upper(broke + 1, fixed, n, alpha) >= upper - 1e-12
    if broke >= fixed:
        assert stats.tango_upper(broke * 2, fixed * 2, n * 2, alpha) <= upper + 1e-12


@given(n=st.integers(1, 5000), share=st.floats(0, 1), alpha=levels)
@settings(max_examples=300, deadline=None)
def test_wilson_bounds_are_ordered_and_mirror_each_other(n, share, alpha):
    k = round(n * share)
    low, high = stats.wilson_lower(k, n, alpha), stats.wilson_upper(k, n, alpha)
    assert 0 <= low <= k / n <= high <= 1
    assert stats.wilson_lower(n - k, n, alpha) == pytest.approx(1 - high, abs=1e-12)


def coverage(bound, n, p_broke, p_fixed, alpha):
    """Exact chance that an upper bound lies at or above the true loss."""
    loss, total = p_broke - p_fixed, 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            weight = (
                math.comb(n, b)
                * math.comb(n - b, c)
                * p_broke**b
                * p_fixed**c
                * (1 - p_broke - p_fixed) ** (n - b - c)
            )
            total += weight * (bound(b, c, n, alpha) >= loss - 1e-12)
    return total


@pytest.mark.parametrize(("p_broke", "p_fixed"), [(0.05, 0.02), (0.1, 0.1), (0.3, 0.1)])
def test_tango_bound_covers_about_as_often_as_it_says(p_broke, p_fixed):
    assert coverage(stats.tango_upper, 40, p_broke, p_fixed, 0.05) == pytest.approx(0.95, abs=0.03)


def test_sample_sizes():
    assert stats.needed_for_margin(0.01, 0.05) == 268
    assert stats.needed_for_share(0.9, 1.0, 0.05) == 25
    assert stats.needed_for_share(0.9, 0.9, 0.05) is None
    assert stats.needed_for_margin(0.01, 0.05, broke=0.02, fixed=0.01) is None
    n = stats.needed_for_margin(0.02, 0.05, broke=0.01)
    assert stats.tango_upper(0.01 * n, 0, n, 0.05) < 0.02
    assert stats.tango_upper(0.01 * (n - 1), 0, n - 1, 0.05) >= 0.02


def test_holm_adjusts_step_by_step():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([]) == []


@given(ps=st.lists(st.floats(0, 1), max_size=8), alpha=levels)
@settings(max_examples=200, deadline=None)
def test_holm_levels_decide_as_adjusted_p_values_do(ps, alpha):
    levels_ = stats.holm_levels(ps, alpha)
    for p, level, adjusted in zip(ps, levels_, stats.holm(ps), strict=True):
        if abs(adjusted - alpha) > 1e-12 and abs(p - level) > 1e-12:
            assert (p <= level) == (adjusted <= alpha)


def test_alpha_spent_over_all_versions_stays_within_the_budget():
    assert sum(stats.spent_alpha(0.05, k) for k in range(1, 20_000)) < 0.05
    assert stats.spent_alpha(0.05, 1) > stats.spent_alpha(0.05, 2)


def test_budget_consumed():
    assert stats.budget_consumed(0, 0, 200, 0.05, 0.05) == pytest.approx(0.267, abs=0.001)
    assert stats.budget_consumed(0, 100, 200, 0.05, 0.05) == 0


def test_design_effect_of_clusters():
    assert stats.design_effect([[True], [False], [True]]) == 1
    assert stats.design_effect([[True, True], [False, False]]) == pytest.approx(2)
    assert stats.design_effect([[True, True], [True]]) == 1
    assert stats.design_effect([[True, False], [False, True]]) == 1
    assert stats.design_effect([]) == 1


def test_edges_of_power():
    assert stats.power_of_count(10, 0.5, 0) == 1
    assert stats.power_of_count(10, 0.0, 1) == 0
    assert stats.power_of_count(10, 1.0, 11) == 0
    assert stats.power_of_count(3, 0.5, 4) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.wilson_lower(3, 2, 0.05),
        lambda: stats.wilson_upper(0, 0, 0.05),
        lambda: stats.tango_upper(3, 3, 5, 0.05),
        lambda: stats.tango_upper(0, 0, 5, 0.0),
        lambda: stats.mcnemar_p(-1, 0),
        lambda: stats.spent_alpha(0.05, 0),
    ],
)
def test_nonsense_is_refused(call):
    with pytest.raises(ProbeError):
        call()


def test_the_interval_of_a_ratio_over_texts():
    assert stats.ratio_interval([]) == (None, None, None)
    assert stats.ratio_interval([(2.0, 4.0)]) == (0.5, None, None)
    assert stats.ratio_interval([(2.0, 4.0), (1.0, 2.0)]) == (0.5, 0.5, 0.5)
    # Equal weights: the mean and its normal interval.
    value, low, high = stats.ratio_interval([(1.0, 1.0), (2.0, 1.0), (3.0, 1.0), (6.0, 1.0)])
    error = statistics.stdev([1, 2, 3, 6]) / 2
    assert (value, low, high) == pytest.approx((3.0, 3 - 1.96 * error, 3 + 1.96 * error), abs=1e-3)
