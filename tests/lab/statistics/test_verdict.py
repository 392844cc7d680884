"""Verdicts. Evidence: the table is flipped, and the sentence flips with it."""

from workbench.lab.statistics.intervals import Interval
from workbench.lab.statistics.verdict import Verdict


def test_a_stamp_leads_the_text_and_metrics_are_numbers():
    verdict = Verdict("Six of six.", True, "share", Interval(1.0, 0.6, 1.0, 6), p=0.03).stamped("DEMO")
    assert str(verdict).startswith("**DEMO** **Holds.**")
    assert verdict.metrics()["holds"] == 1
    assert verdict.metrics()["effect_n"] == 6
