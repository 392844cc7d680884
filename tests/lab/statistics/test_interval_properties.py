"""Intervals and p-values of any data. Evidence: scipy, ranges that are possible, symmetries, and shrinking with n."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from workbench.lab.compare.table import differences
from workbench.lab.statistics import intervals as iv
from workbench.lab.statistics.effects import effects
from workbench.lab.statistics.pairs import pairs

VALUES = st.integers(-1000, 1000).map(lambda n: n / 64) | st.floats(-1e3, 1e3)
SAMPLES = st.lists(VALUES, min_size=2, max_size=8)
SPREAD = SAMPLES.filter(lambda values: np.ptp(values) > 1e-3)  # a t-test needs a scale
SHARES = st.lists(st.floats(0, 1), min_size=2, max_size=8)
COUNTS = st.integers(0, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
BOUNDS = st.sampled_from([0.0, 0.5, 2.0, 100.0])
METHODS = ("wilson", "exact")


def ends(interval):
    return interval.low, interval.mean, interval.high


def close(a, b, size=1.0):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * size)


# ---- t-intervals


@given(SAMPLES)
def test_a_t_interval_contains_its_mean_and_is_that_of_scipy(values):
    interval = iv.t_interval(values)
    assert interval.low <= interval.mean <= interval.high and interval.n == len(values)
    close(interval.mean, np.mean(values))
    if np.ptp(values) > 1e-9:
        close((interval.low, interval.high), stats.ttest_1samp(values, 0).confidence_interval(0.95), 1e3)
    assert iv.t_bounds(values) == (interval.low, interval.high)


@given(SAMPLES, VALUES, st.sampled_from([2.0, 0.25, 3.0, 100.0]))
def test_a_t_interval_shifts_and_scales_with_the_data(values, shift, scale):
    low, mean, high = ends(iv.t_interval(values))
    close(ends(iv.t_interval([scale * v + shift for v in values])), [scale * v + shift for v in (low, mean, high)], 1e5)
    close(ends(iv.t_interval([-scale * v for v in values])), [-scale * v for v in (high, mean, low)], 1e5)


@given(SPREAD, st.integers(2, 4))
def test_an_interval_shrinks_if_the_same_data_come_more_often(values, times):
    once, often = iv.t_interval(values), iv.t_interval(values * times)
    assert often.high - often.low < once.high - once.low


@given(SHARES)
def test_an_interval_of_accuracies_lies_within_0_and_1_and_contains_the_mean(values):
    low, mean, high = ends(iv.accuracy_interval(values))
    assert 0 <= low <= mean <= high <= 1
    assert min(values) - 1e-12 <= iv.best_four_of_five(values) <= max(values) + 1e-12


@given(SHARES, st.data())
def test_a_paired_interval_changes_its_sign_with_the_order_of_the_arms(a, data):
    b = data.draw(st.lists(st.floats(0, 1), min_size=len(a), max_size=len(a)))
    forth, back = iv.paired_interval(a, b), iv.paired_interval(b, a)
    assert ends(forth) == tuple(-v for v in reversed(ends(back)))
    assert iv.side(forth) is None or iv.side(forth) is not iv.side(back)


# ---- shares


@pytest.mark.parametrize("method", METHODS)
def test_an_interval_of_a_share_is_possible_symmetric_and_that_of_an_independent_formula(method):
    @given(COUNTS)
    def holds(counts):
        k, n = counts
        share, rest = iv.share_interval(k, n, method), iv.share_interval(n - k, n, method)
        assert 0 <= share.low <= share.high <= 1
        close((share.low, share.high), (1 - rest.high, 1 - rest.low))
        if n:
            assert share.low <= share.mean == k / n <= share.high
            close((share.low, share.high), _wilson(k, n) if method == "wilson" else _exact(k, n))

    holds()


def _wilson(k, n):
    z = stats.norm.ppf(0.975)
    middle, half = (k + z * z / 2) / (n + z * z), z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return middle - half, middle + half


def _exact(k, n):
    low = stats.beta.ppf(0.025, k, n - k + 1) if k else 0.0
    return low, stats.beta.ppf(0.975, k + 1, n - k) if k < n else 1.0


@pytest.mark.parametrize("method", METHODS)
def test_an_interval_of_a_share_shrinks_with_the_number_of_observations(method):
    @given(COUNTS.filter(lambda counts: counts[1] > 0), st.integers(2, 5))
    def holds(counts, times):
        once, often = iv.share_interval(*counts, method), iv.share_interval(*(times * v for v in counts), method)
        assert often.high - often.low < once.high - once.low

    holds()


@given(COUNTS)
def test_a_p_value_of_a_share_is_a_probability_and_symmetric(counts):
    k, n = counts
    assert 0 <= iv.share_p(k, n) <= 1
    assert iv.share_p(k, n) == pytest.approx(iv.share_p(n - k, n))


# ---- p-values of differences


@given(SAMPLES, BOUNDS)
def test_p_values_are_probabilities_and_two_sided_ones_do_not_depend_on_the_order_of_the_arms(values, bound):
    other = [-v for v in values]
    for p in (
        iv.difference_p(values),
        iv.below_p(values, bound),
        iv.within_p(values, bound),
        iv.beyond_p(values, bound),
    ):
        assert 0 <= p <= 1
    for test in (iv.difference_p, lambda v: iv.within_p(v, bound), lambda v: iv.beyond_p(v, bound)):
        assert test(values) == pytest.approx(test(other), rel=1e-6, abs=1e-12)


@given(SPREAD, BOUNDS)
def test_p_values_are_those_of_scipy_and_agree_with_the_interval(values, bound):
    interval = iv.t_interval(values)
    assert iv.difference_p(values) == pytest.approx(stats.ttest_rel(values, [0.0] * len(values)).pvalue)
    error = stats.sem(values)
    below = stats.t.cdf((np.mean(values) - bound) / error, len(values) - 1)
    above = stats.t.cdf((-bound - np.mean(values)) / error, len(values) - 1)
    assert iv.below_p(values, bound) == pytest.approx(below, rel=1e-6, abs=1e-12)
    assert iv.within_p(values, bound) == pytest.approx(max(below, above), rel=1e-6, abs=1e-12)
    nearest = min(abs(interval.low), abs(interval.high)) - 1e-9
    assert (iv.difference_p(values) < 0.05) == (iv.side(interval) is not None) or nearest < 1e-6
    if abs(iv.beyond_p(values, bound) - 0.05) > 1e-9:
        assert (iv.beyond_p(values, bound) < 0.05) == (interval.low > bound or interval.high < -bound)


@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=8), st.randoms())
def test_holms_adjustment_is_monotone_bounded_and_independent_of_the_order(p_values, random):
    adjusted = iv.holm(p_values)
    known = [p for p in p_values if not math.isnan(p)]
    for p, after in zip(p_values, adjusted, strict=True):
        assert math.isnan(after) if math.isnan(p) else p <= after <= min(1, p * len(known) + 1e-12) or after <= 1
        assert math.isnan(p) or after >= p
    by_p = sorted(zip(known, (a for a in adjusted if not math.isnan(a)), strict=True))
    assert [a for _, a in by_p] == sorted(a for _, a in by_p)
    assert all(after <= 1 for _, after in by_p) and (not by_p or by_p[0][1] == min(1, by_p[0][0] * len(known)))
    order = list(range(len(p_values)))
    random.shuffle(order)
    np.testing.assert_array_equal(iv.holm([p_values[i] for i in order]), [adjusted[i] for i in order])


# ---- comparisons of arms

ARMS = st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=2, max_size=3)


@given(ARMS)
def test_arms_compared_in_the_other_direction_give_the_negative_difference(arms):
    rows = [
        {"arm": f"arm{i}", "seed": seed, "test_acc": acc, "val_acc": acc, "lr": 0.1}
        for i, accuracies in enumerate(arms)
        for seed, acc in enumerate(accuracies)
    ]
    table = pd.DataFrame(rows)
    forth, back = (effects(table, a, [b]).iloc[0] for a, b in (("arm0", "arm1"), ("arm1", "arm0")))
    assert (forth.difference, forth.low, forth.high) == (-back.difference, -back.high, -back.low)
    assert forth.p == pytest.approx(back.p) and 0 <= forth.p <= 1 and 0 <= forth.p_equal <= 1
    both = pairs(table)
    assert len(both) == len(arms) * (len(arms) - 1) / 2
    close(both.difference[0], -forth.difference)
    assert both.p.between(0, 1).all()


@given(st.lists(st.lists(st.floats(0, 1) | st.just(math.nan), min_size=4, max_size=4), min_size=2, max_size=3))
def test_differences_of_a_comparison_are_those_of_scipy_and_change_their_sign_with_the_reference(columns):
    by_seed = np.array(columns).T
    mean, low, high, paired = differences(by_seed, 0)
    back = differences(by_seed, 1)
    close((mean[1], low[1], high[1]), (-back[0][0], -back[2][0], -back[1][0]))
    a, b = by_seed[:, 0], by_seed[:, 1]
    both = np.isfinite(a) & np.isfinite(b)
    if paired[1]:
        close((mean[1], low[1], high[1]), np.array(ends(iv.paired_interval(a[both], b[both])))[[1, 0, 2]])
    elif not math.isnan(low[1]) and max(np.nanvar(a), np.nanvar(b)) > 1e-9:
        welch = stats.ttest_ind(a[np.isfinite(a)], b[np.isfinite(b)], equal_var=False).confidence_interval(0.95)
        close((low[1], high[1]), welch)
