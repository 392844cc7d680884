"""Boundaries of stability. Evidence: outcomes with a known boundary, and coverage of the intervals."""

import math

import numpy as np
import pandas as pd
import pytest
from support.boundaries import LRS

from workbench.lab.statistics.boundary import largest_by_seed, shift, stable_window


def test_a_window_finds_the_rate_between_the_last_that_trains_and_the_first_that_fails():
    window = stable_window(LRS * 2, [0, 0, 0, 0, 1, 1, 1, 1] * 2)
    assert 1.6 < window.largest.mean < 3.2  # failures begin at the fifth rate, 3.2
    assert 0.8 < window.largest.low < window.largest.mean < window.largest.high < 6.4
    assert window.smallest.mean == 0 and window.deviance_p > 0.5
    band = window.band
    assert (band.low <= band.share + 1e-12).all() and (band.share <= band.high + 1e-12).all()


def test_the_interval_of_a_boundary_is_as_fine_as_the_rates():
    rates = [2 ** (i / 4) for i in range(8)]
    largest = stable_window(rates * 2, [0, 0, 0, 0, 1, 1, 1, 1] * 2).largest
    assert rates[3] < largest.mean < rates[4] and largest.low < largest.mean < largest.high


def test_a_window_fits_failure_at_both_ends_but_not_in_the_middle():
    both = stable_window(LRS * 3, [1, 1, 0, 0, 0, 0, 1, 1] * 3)
    assert 0.4 < both.smallest.mean < 0.8 and 6.4 < both.largest.mean < 12.8
    middle = stable_window(LRS * 3, [0, 0, 0, 1, 1, 0, 0, 0] * 3)
    assert middle.deviance_p < 0.01 < both.deviance_p


def test_a_boundary_beyond_the_rates_is_open():
    never = stable_window(LRS, [0] * 8)
    assert math.isinf(never.largest.mean) and math.isfinite(never.largest.low) and never.largest.low > 6.4
    always = stable_window(LRS, [1] * 8)
    assert always.largest.high == math.inf and always.largest.low == 0


def test_the_interval_of_the_boundary_covers_it():
    """Of logistic outcomes with a known boundary, at least nine of ten 95 % intervals contain it."""
    rng, covered = np.random.default_rng(1), 0
    x = np.log2(np.repeat(LRS, 4))
    for _ in range(40):
        failed = rng.random(len(x)) < 1 / (1 + np.exp(-2.0 * (x - 1.1)))
        largest = stable_window(2**x, failed).largest
        covered += largest.low <= 2**1.1 <= largest.high
    assert covered >= 36


def test_a_shift_of_two_doublings_is_significant_and_no_shift_is_not():
    low = stable_window(LRS * 4, [0, 0, 0, 1, 1, 1, 1, 1] * 4)
    high = stable_window(LRS * 4, [0, 0, 0, 0, 0, 1, 1, 1] * 4)
    between, p = shift(high, low)
    assert between.mean == pytest.approx(2, abs=0.3) and between.low > 1 and p < 0.01
    same, p = shift(low, low)
    assert same.mean == 0 and p == pytest.approx(1)
    open_ended, p = shift(stable_window(LRS, [0] * 8), low)
    assert open_ended.mean == math.inf and open_ended.low > 2 and p < 0.05


def test_the_largest_rate_of_each_seed_by_hand():
    """Rates 1, 2, 4, 8 have the logarithms 0 to 3.

    A seed that fails from 4 on is at 1.5. A seed that fails at 2 and trains at 4 is at 0.5 - 1.5 + 2.5. A failure below
    the lowest rate that trains does not count. The ends are bounds.
    """
    seeds = {0: [0, 0, 1, 1], 1: [0, 1, 0, 1], 2: [1, 0, 0, 1], 3: [1, 1, 1, 1], 4: [0, 0, 0, 0]}
    cell = pd.DataFrame(
        [{"lr": 2.0**i, "failed": f, "seed": seed} for seed, failed in seeds.items() for i, f in enumerate(failed)]
    )
    largest = largest_by_seed(cell.sample(frac=1, random_state=0))
    assert largest.to_dict() == pytest.approx({0: 1.5, 1: 1.5, 2: 2.5, 3: 0.0, 4: 3.0})
