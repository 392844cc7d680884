"""Claim 7. Evidence: tables with a known answer give that answer and its interval."""

import numpy as np
import pytest
from support.boundaries import by_product, by_rate, outcomes

from workbench.claims import stability_boundary


def test_the_verdict_counts_seeds_and_not_trainings():
    """Each seed has eight rates. Two seeds that agree separate 32 trainings perfectly, which is still undecided."""
    two = stability_boundary.judge(outcomes(by_product, seeds=2, spread=0.0))
    assert two.holds is None and two.effect.p == 0.5 and two.effect.value.n == 2
    eight = stability_boundary.judge(outcomes(by_product, seeds=8, spread=0.0))
    assert eight.holds is True and eight.effect.p == pytest.approx(2 / 2**8)
    assert eight.effect.value.mean == pytest.approx(3)  # a ratio of 10 is 3.3 doublings, on a grid of doublings
    beyond = stability_boundary.judge(outcomes(lambda b, c: 1.0 if c is None else 1e6, seeds=8, spread=0.0))
    rows = beyond.table.set_index(["batch_size", "threshold"])
    assert (rows.seeds_beyond[512, "0.01"], rows.seeds_beyond[512, "none"]) == (8, 0)


def test_the_verdict_flips_with_the_effect_of_clipping_on_the_boundary():
    good = stability_boundary.judge(outcomes(by_product, seeds=8))
    assert good.holds is True and good.effect.value.low > 2 and good.effect.p < 0.01
    rows = good.table.set_index(["batch_size", "threshold"])
    assert len(rows) == 10 and rows.largest[512, "none"] == pytest.approx(1, rel=0.3)
    assert rows.doublings[512, "0.01"] == good.effect.value.mean and np.isnan(rows.doublings[512, "none"])
    assert rows.doublings_fitted[512, "0.01"] == pytest.approx(np.log2(10), abs=0.5)
    none = stability_boundary.judge(outcomes(by_rate, seeds=8))
    assert none.holds is None
    worse = stability_boundary.judge(outcomes(lambda b, c: 4.0 if c is None else 0.8, seeds=8))
    assert worse.holds is False and worse.effect.value.high < 0
