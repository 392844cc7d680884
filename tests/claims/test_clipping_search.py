"""The search for a threshold. Evidence: the table is flipped, and the sentence flips with it."""

from support.tables import confirmed, trials

from workbench.claims import clipping_search


def test_the_search_follows_the_confirmation():
    above, below, tie = (
        clipping_search.judge(trials(), confirmed(d, n)) for d, n in ((0.1, 0.001), (-0.1, 0.001), (0.0, 0.2))
    )
    assert above.holds is True and "above no clipping" in above.sentence
    assert below.holds is False and "below no clipping" in below.sentence
    assert tie.holds is None and "not told apart" in tie.sentence
    assert "from 0.01 to 0.08 (2 of 2 completed)" in above.sentence


def test_a_search_in_which_nothing_clipped_completed_says_so():
    assert clipping_search.judge(trials(), confirmed(0.1)[lambda t: t.arm == "NF"]).holds is None
