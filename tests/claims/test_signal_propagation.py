"""Claim 1. Evidence: the table is flipped, and the sentence flips with it."""

import pandas as pd
import pytest
from support.tables import signal_table

from workbench.claims import signal_propagation


def test_signal_propagation_holds_inside_the_tolerance_and_not_outside():
    good, bad = signal_propagation.judge(signal_table(1.02)), signal_propagation.judge(signal_table(1.5))
    assert good.holds is True and "stays within 15%" in good.sentence
    assert bad.holds is False and "leaves 15%" in bad.sentence
    assert good.effect.mean == pytest.approx(0.021)
    assert "squared mean reaches 9" in good.sentence


def test_images_are_told_but_decide_nothing():
    table = signal_table(1.02)
    images = table.assign(input="images", var=0.3, expected_var=0.1)
    verdict = signal_propagation.judge(pd.concat([table, images], ignore_index=True))
    assert (
        verdict.holds is True and "ends at variance 0.3" in verdict.sentence and "0.1 is expected" in verdict.sentence
    )


def test_a_network_without_a_theory_is_judged_by_the_rules():
    table = signal_table(1.0)
    user_table = table[table.arm == "BN"].assign(arm="my_nets:net", expected_var=float("nan"), mean_sq=0.1)
    sound = signal_propagation.judge(user_table)
    assert sound.holds is True and "There is no theory for my_nets:net" in sound.sentence and "100%" in sound.sentence
    doubling = user_table.assign(var=2.0**user_table.block)
    assert (
        signal_propagation.judge(doubling).holds is False
        and "(broken: grows)" in signal_propagation.judge(doubling).sentence
    )


def test_a_wide_interval_decides_nothing():
    table = signal_table(1.0)
    table.loc[(table.seed == 2) & (table.arm == "NF"), "var"] *= 1.25
    assert signal_propagation.judge(table).holds is None
