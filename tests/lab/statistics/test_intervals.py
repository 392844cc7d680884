"""Intervals. Evidence: hand arithmetic with tabled quantiles, coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from workbench.lab.statistics.intervals import (
    Interval,
    accuracy_interval,
    below_p,
    best_four_of_five,
    beyond_p,
    difference_p,
    holm,
    paired_interval,
    points,
    share_interval,
    share_p,
    side,
    t_interval,
    within_p,
)


def test_a_t_interval_by_hand():
    interval = t_interval([1.0, 2.0, 3.0])  # mean 2, s = 1, t(0.975, 2) = 4.302653 from the table
    assert (interval.mean, interval.low, interval.high) == pytest.approx(
        (2, 2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3))
    )


def test_pairing_removes_the_variation_that_seeds_share():
    a, b = [10.0, 20.0, 30.0], [9.0, 19.0, 29.0]
    interval = paired_interval(a, b)
    assert (interval.mean, interval.low, interval.high) == (1, 1, 1)


def test_accuracies_of_two_seeds_end_at_one():
    interval = accuracy_interval([0.95, 0.97])
    assert (interval.low, interval.high) == (pytest.approx(0.96 - 12.7062 * 0.01, abs=1e-4), 1.0)
    assert math.isnan(accuracy_interval([0.5]).low)


def test_the_papers_mean_of_five_seeds_leaves_out_the_worst():
    assert best_four_of_five([0.1, 0.5, 0.6, 0.7, 0.8]) == pytest.approx(0.65)
    assert best_four_of_five([0.4]) == 0.4


def test_one_seed_has_no_interval():
    interval = t_interval([0.5])
    assert math.isnan(interval.low)
    assert f"{interval:.1%}" == "50.0% (n = 1, no interval)"


def test_wilsons_interval_by_hand():
    z = 1.959964
    p, n = 4 / 4, 4
    low = (p + z * z / (2 * n) - z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)
    assert share_interval(4, 4).low == pytest.approx(low, rel=1e-6)
    assert share_interval(0, 0).n == 0


def test_the_t_interval_covers_the_mean_in_95_percent_of_cases():
    rng = np.random.default_rng(0)
    inside = [t.low <= 0 <= t.high for t in (t_interval(rng.normal(size=5)) for _ in range(2000))]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


def test_unequal_pairs_are_refused():
    with pytest.raises(ValueError, match=r"`a` and `b`.* 1 and 2"):
        paired_interval([1.0], [1.0, 2.0])


def test_holm_by_hand():
    """Holm 1979: 0.01 x 3, max(0.03, 0.02 x 2), max(0.04, 0.04 x 1). NaN is not a test and does not count."""
    assert holm([0.04, 0.01, math.nan, 0.02])[:2] == pytest.approx([0.04, 0.03])
    assert holm([0.04, 0.01, math.nan, 0.02])[3] == pytest.approx(0.04)
    assert math.isnan(holm([0.04, 0.01, math.nan, 0.02])[2])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_test_of_a_difference_agrees_with_its_95_percent_interval():
    """The two-sided p-value is below 0.05 exactly if the interval excludes 0."""
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.5, 1.0, 2.0):
        values = rng.normal(shift, 1, 8)
        interval = t_interval(values)
        assert (difference_p(values) < 0.05) == (interval.low > 0 or interval.high < 0)
    assert difference_p([0.0, 0.0]) == 1.0
    assert math.isnan(difference_p([1.0]))


def test_the_equivalence_test_agrees_with_the_90_percent_interval():
    """Two one-sided tests at 5 % pass exactly if the 90 % interval is within the margin (Schuirmann 1987)."""
    rng = np.random.default_rng(4)
    within = []
    for shift in (0.0, 0.2, 0.4, 0.6, 1.5):
        values = rng.normal(shift, 0.5, 12)
        low, high = stats.t.interval(0.9, 11, values.mean(), stats.sem(values))
        within.append(within_p(values, 0.5) < 0.05)
        assert within[-1] == (-0.5 < low and high < 0.5)
    assert within[0] and not within[-1]


def test_the_test_beyond_a_margin_agrees_with_the_95_percent_interval():
    rng = np.random.default_rng(5)
    beyond = []
    for shift in (0.0, 0.5, 0.8, -0.8, -1.5, 1.5):
        values = rng.normal(shift, 0.5, 12)
        interval = t_interval(values)
        beyond.append(beyond_p(values, 0.5) < 0.05)
        assert beyond[-1] == (interval.low > 0.5 or interval.high < -0.5)
    assert not beyond[0] and beyond[-1] and beyond[-2]
    assert math.isnan(beyond_p([1.0], 0.5))


def test_equal_differences_are_tested_by_the_sign_test():
    """Three seeds of one sign: 2 / 2^3 two-sided, 1 / 2^3 one-sided. Zero spread is not certainty."""
    equal = [0.1, 0.1, 0.1]
    assert difference_p(equal) == pytest.approx(0.25)
    assert beyond_p(equal, 0.05) == pytest.approx(0.25) and beyond_p(equal, 0.5) == 1.0
    assert within_p(equal, 0.5) == pytest.approx(0.125) and within_p(equal, 0.05) == 1.0
    assert below_p(equal, 0.5) == pytest.approx(0.125) and below_p(equal, 0.05) == 1.0


def test_a_share_by_the_exact_test():
    """9 of 10 against one half: 2 (1 + 10) / 1024."""
    assert share_p(9, 10) == pytest.approx(22 / 1024)
    assert share_p(0, 0) == 1.0


def test_the_exact_interval_agrees_with_the_exact_test():
    """It excludes one half exactly if p < 0.05: for 6 of 6 but not for 5 of 5. Their lower end is 0.025^(1/5)."""
    assert share_interval(5, 5, method="exact").low == pytest.approx(0.025**0.2)
    assert share_p(5, 5) > 0.05 and share_p(6, 6) < 0.05 and share_interval(6, 6, method="exact").low > 0.5


def test_differences_of_accuracies_are_written_in_points():
    assert points(Interval(-0.0687, -0.086, -0.0514, 8)) == "-6.9 points [-8.6, -5.1]"
    assert points(Interval(0.00159, 0.000442, 0.00273, 8)) == "+0.16 points [+0.04, +0.27]"
    assert points(Interval(-0.012, float("nan"), float("nan"), 1)) == "-1.2 points (n = 1, no interval)"


def test_an_interval_has_a_side_only_if_it_excludes_zero():
    assert side(Interval(0.1, 0.01, 0.2, 8)) is True and side(Interval(-0.1, -0.2, -0.01, 8)) is False
    assert side(Interval(0.1, -0.01, 0.2, 8)) is None and side(Interval(0.1, float("nan"), float("nan"), 1)) is None
