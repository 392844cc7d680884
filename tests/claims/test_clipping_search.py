"""The search for a threshold. Evidence: the verdict flips with the table."""

import pytest
from support.tables import confirmed, trials

from workbench.claims import clipping_search


def test_the_verdict_follows_the_confirmation():
    above, below, tie = (
        clipping_search.judge(trials(), confirmed(d, n)) for d, n in ((0.1, 0.001), (-0.1, 0.001), (0.0, 0.2))
    )
    assert above.holds is True and above.effect.value.low > 0
    assert below.holds is False and below.effect.value.high < 0
    assert tie.holds is None
    agc = above.table.set_index("arm").loc["NF+AGC"]
    assert (agc.smallest_good_clip, agc.largest_good_clip, agc.good_trials, agc.trials) == (0.01, 0.08, 2, 2)
    assert agc.accuracy == pytest.approx(0.8) and agc.lr == 1.0


def test_a_search_without_both_arms_is_undecided():
    plain = clipping_search.judge(trials(), confirmed(0.1)[lambda t: t.arm == "NF"])
    assert plain.holds is None and plain.effect.value.n == 0 and list(plain.table.arm) == ["NF"]
    clipped = clipping_search.judge(trials(), confirmed(0.1)[lambda t: t.arm == "NF+AGC"])
    assert clipped.holds is None and clipped.effect.value.mean == pytest.approx(0.8)
