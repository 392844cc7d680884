"""Claim 1. Evidence: the verdict flips with the table."""

import pandas as pd
import pytest
from support.tables import signal_table

from workbench.claims import signal_propagation


def test_signal_propagation_holds_inside_the_tolerance_and_not_outside():
    good, bad = signal_propagation.judge(signal_table(1.02)), signal_propagation.judge(signal_table(1.5))
    assert good.holds is True and bad.holds is False and bad.effect.value.low > 0.15
    assert good.effect.value.mean == pytest.approx(0.021)
    values = good.table.set_index("fact").value
    assert values["NF: largest squared channel mean"] == 0.01
    assert values["NF without scaled WS: largest squared channel mean"] == 9
    assert values["BN: variance gained per block"] == pytest.approx(0.87, abs=0.1)


def test_images_are_in_the_table_but_do_not_decide():
    table = signal_table(1.02)
    images = table.assign(input="images", var=0.3, expected_var=0.1)
    verdict = signal_propagation.judge(pd.concat([table, images], ignore_index=True))
    row = verdict.table.set_index("fact").loc["NF: final variance on images"]
    assert verdict.holds is True and (row.value, row.expected) == pytest.approx((0.3, 0.1))


def test_a_network_without_a_theory_is_judged_by_the_rules():
    table = signal_table(1.0)
    user_table = table[table.arm == "BN"].assign(arm="my_nets:net", expected_var=float("nan"), mean_sq=0.1)
    sound = signal_propagation.judge(user_table)
    assert sound.holds is True and sound.effect.value.mean == 1 and len(sound.table) == 1
    doubling = signal_propagation.judge(user_table.assign(var=2.0**user_table.block))
    assert doubling.holds is False and doubling.effect.value.mean == 0
    shares = doubling.table.set_index("fact").value
    assert shares["share that grows"] == 1 and shares["variance after 4 blocks"] == 16


def test_a_wide_interval_is_undecided():
    table = signal_table(1.0)
    table.loc[(table.seed == 2) & (table.arm == "NF"), "var"] *= 1.25
    assert signal_propagation.judge(table).holds is None
