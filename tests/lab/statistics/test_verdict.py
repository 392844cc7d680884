"""Verdicts. Evidence: cells and metrics of small verdicts by hand."""

import math

import pandas as pd
import pytest

from workbench.lab.statistics.intervals import Interval
from workbench.lab.statistics.verdict import Effect, Verdict, as_text, fact

SHARE = Interval(1.0, 0.6, 1.0, 6)


def test_a_verdict_prints_stamp_answer_headline_effect_and_table_in_this_order():
    table = pd.DataFrame({"arm": ["NF", "a|b"], "failed": [6, 0]})
    verdict = Verdict(True, Effect("share", SHARE, p=0.03), "Six of six.", table).stamped("DEMO")
    answer, effect, rows = str(verdict).split("\n\n")
    assert answer == "**DEMO** **Holds.** Six of six." and effect == f"*{verdict.effect}*"
    assert rows.splitlines() == ["| arm | failed |", "| --- | --- |", "| NF | 6 |", "| a\\|b | 0 |"]
    assert verdict._repr_markdown_() == str(verdict)


def test_metrics_are_the_numbers_of_the_effect_and_the_answer():
    verdict = Verdict(True, Effect("share", SHARE, p=0.03), "", pd.DataFrame())
    assert verdict.metrics() == {"effect": 1, "effect_low": 0.6, "effect_high": 1, "effect_n": 6, "p": 0.03, "holds": 1}
    undecided = Verdict(None, Effect("share", SHARE), "", pd.DataFrame())
    assert undecided.metrics().keys() == {"effect", "effect_low", "effect_high", "effect_n"}


@pytest.mark.parametrize(
    ("effect", "text"),
    [
        (Effect("gain", Interval(0.0721, 0.06, 0.085, 8), 3.3e-6, in_points=True),
         "gain = +7.2 points [+6.0, +8.5], n = 8, p = 3.3e-06"),
        (Effect("k", Interval(0.6, 0.55, 0.65, 232)), "k = 0.6 [0.55, 0.65], n = 232"),
    ],
)  # fmt: skip
def test_an_effect_is_written_with_its_interval_n_and_p(effect, text):
    assert str(effect) == text


def test_bounds_share_the_cell_of_their_estimate_and_empty_columns_are_left_out():
    table = pd.DataFrame(
        {"arm": ["NF", "BN"], "points": [7.216, math.nan], "low": [5.93, math.nan], "high": [8.51, math.nan],
         "agc_keeps": [4.0, 1.0], "agc_keeps_low": [math.nan] * 2, "agc_keeps_high": [math.nan] * 2, "slow": [6400, 1],
         "stable": [True, False], "at_edge": ["", ""], "p": [math.nan] * 2}
    )  # fmt: skip
    assert as_text(table).to_dict("list") == {
        "arm": ["NF", "BN"],
        "points": ["7.22 [5.93, 8.51]", ""],
        "agc keeps": ["4", "1"],
        "slow": ["6400", "1"],
        "stable": ["yes", "no"],
    }


def test_a_fact_is_a_row_of_an_interval_or_a_number():
    table = pd.DataFrame([fact("share", SHARE, p=0.03), fact("largest", 12.3)])
    assert table.set_index("fact").loc["share", ["value", "low", "high", "n", "p"]].tolist() == [1, 0.6, 1, 6, 0.03]
    assert table.value[1] == 12.3 and table.loc[1, ["low", "high", "n", "p"]].isna().all()
