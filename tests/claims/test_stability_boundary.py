"""Claim 7. Evidence: tables with a known answer go in, the answer and its interval come out."""

import pytest
from support.boundaries import by_product, by_rate, outcomes

from workbench.claims import stability_boundary


def test_seeds_are_counted_and_not_trainings():
    """Eight rates a seed: of two seeds that agree 32 trainings are perfectly separated, and that decides nothing."""
    two = stability_boundary.judge(outcomes(by_product, seeds=2, spread=0.0))
    assert two.holds is None and two.p == 0.5 and two.effect.n == 2
    eight = stability_boundary.judge(outcomes(by_product, seeds=8, spread=0.0))
    assert eight.holds is True and eight.p == pytest.approx(2 / 2**8)
    assert eight.effect.mean == pytest.approx(3)  # 10 to 1 is 3.3 doublings, on a grid of doublings
    beyond = stability_boundary.judge(outcomes(lambda b, c: 1.0 if c is None else 1e6, seeds=8, spread=0.0))
    assert "Of 8 seeds an end lies beyond the rates" in beyond.sentence


def test_clipping_that_raises_the_boundary_holds_and_clipping_that_does_nothing_does_not():
    good = stability_boundary.judge(outcomes(by_product, seeds=8))
    assert good.holds is True and good.effect.low > 2 and good.p < 0.01
    assert "raises the largest stable rate" in good.sentence
    none = stability_boundary.judge(outcomes(by_rate, seeds=8))
    assert none.holds is None and "not shown to change" in none.sentence
    worse = stability_boundary.judge(outcomes(lambda b, c: 4.0 if c is None else 0.8, seeds=8))
    assert worse.holds is False and "lowers" in worse.sentence
