"""Intervals. Evidence: hand arithmetic with tabled quantiles, coverage."""

import math

import numpy as np
import pytest

from workbench.lab.stats import paired_interval, share_interval, t_interval


def test_a_t_interval_by_hand():
    found = t_interval([1.0, 2.0, 3.0])  # mean 2, s = 1, t(0.975, 2) = 4.302653 from the table
    assert (found.mean, found.low, found.high) == pytest.approx(
        (2, 2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3))
    )


def test_pairing_takes_out_what_seeds_share():
    a, b = [10.0, 20.0, 30.0], [9.0, 19.0, 29.0]
    found = paired_interval(a, b)
    assert (found.mean, found.low, found.high) == (1, 1, 1)


def test_one_seed_has_no_interval():
    found = t_interval([0.5])
    assert math.isnan(found.low)
    assert f"{found:.1%}" == "50.0% (n = 1, no interval)"


def test_wilsons_interval_by_hand():
    z = 1.959964
    p, n = 4 / 4, 4
    low = (p + z * z / (2 * n) - z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)
    assert share_interval(4, 4).low == pytest.approx(low, rel=1e-6)
    assert share_interval(0, 0).n == 0


def test_the_t_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = [t.low <= 0 <= t.high for t in (t_interval(rng.normal(size=5)) for _ in range(2000))]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


def test_unequal_pairs_are_refused():
    with pytest.raises(ValueError, match="equal lengths"):
        paired_interval([1.0], [1.0, 2.0])
