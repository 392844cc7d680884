"""Verdicts. Evidence: the table is flipped, and the sentence flips with it."""

import pandas as pd
import pytest

from workbench.lab.claims import clipping_search, signal_propagation
from workbench.lab.stats import Interval
from workbench.lab.verdicts import Verdict


def signal_table(factor):
    rows = []
    for arm in ("NF", "NF without scaled WS", "BN"):
        for seed in range(3):
            for block in range(5):
                expected = 1 + 0.04 * block
                grow = {"NF": factor, "BN": 1 + 0.68 * block, "NF without scaled WS": 1.0}[arm]
                rows.append(
                    {"arm": arm, "input": "noise", "seed": seed, "stage": -1 if block == 0 else 0, "block": block, "var": expected * (grow + 0.001 * seed),
                     "expected_var": expected, "mean_sq": 0.01 if arm == "NF" else 9.0, "residual_var": 1.0, "grad_var": 1.0, "dead": 0.0}
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_signal_propagation_holds_inside_the_tolerance_and_not_outside():
    good, bad = signal_propagation.verdict(signal_table(1.02)), signal_propagation.verdict(signal_table(1.5))
    assert good.holds is True and "stays within 15%" in good.sentence
    assert bad.holds is False and "leaves 15%" in bad.sentence
    assert good.effect.mean == pytest.approx(0.021)
    assert "squared mean reaches 9" in good.sentence


def test_images_are_told_but_decide_nothing():
    table = signal_table(1.02)
    images = table.assign(input="images", var=0.3, expected_var=0.1)
    verdict = signal_propagation.verdict(pd.concat([table, images], ignore_index=True))
    assert (
        verdict.holds is True and "ends at variance 0.3" in verdict.sentence and "0.1 is expected" in verdict.sentence
    )


def test_a_network_without_a_theory_is_judged_by_the_rules():
    table = signal_table(1.0)
    own = table[table.arm == "BN"].assign(arm="my_nets:net", expected_var=float("nan"), mean_sq=0.1)
    sound = signal_propagation.verdict(own)
    assert sound.holds is True and "There is no theory for my_nets:net" in sound.sentence and "100%" in sound.sentence
    doubling = own.assign(var=2.0**own.block)
    assert (
        signal_propagation.verdict(doubling).holds is False
        and "(broken: grows)" in signal_propagation.verdict(doubling).sentence
    )


def test_a_wide_interval_decides_nothing():
    table = signal_table(1.0)
    table.loc[(table.seed == 2) & (table.arm == "NF"), "var"] *= 1.25
    assert signal_propagation.verdict(table).holds is None


def trials():
    return pd.DataFrame(
        {"arm": ["NF+AGC"] * 3 + ["NF"], "state": ["COMPLETE"] * 3 + ["COMPLETE"], "outcome": ["complete", "complete", "diverged", "complete"],
         "clip": [0.01, 0.08, 0.64, None], "lr": [1.0, 1.0, 1.0, 0.5], "val_acc": [0.80, 0.79, 0.10, 0.7]}
    )  # fmt: skip


def confirmed(difference, noise=0.001):
    rows = [
        {"arm": arm, "seed": s, "val_acc": 0.7 + (difference if arm == "NF+AGC" else 0) + noise * (s if arm == "NF" else 0),
         "lr": 1.0, "clip": 0.01, "batch_size": 64, "failed": 0}
        for arm in ("NF+AGC", "NF") for s in range(4)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_search_follows_the_confirmation():
    above, below, tie = (
        clipping_search.verdict(trials(), confirmed(d, n)) for d, n in ((0.1, 0.001), (-0.1, 0.001), (0.0, 0.2))
    )
    assert above.holds is True and "above no clipping" in above.sentence
    assert below.holds is False and "below no clipping" in below.sentence
    assert tie.holds is None and "not told apart" in tie.sentence
    assert "from 0.01 to 0.08 (2 of 2 completed)" in above.sentence


def test_a_search_in_which_nothing_clipped_completed_says_so():
    assert clipping_search.verdict(trials(), confirmed(0.1)[lambda t: t.arm == "NF"]).holds is None


def test_a_stamp_leads_the_text_and_metrics_are_numbers():
    verdict = Verdict("Six of six.", True, "share", Interval(1.0, 0.6, 1.0, 6), p=0.03).stamped("DEMO")
    assert str(verdict).startswith("**DEMO** **Holds.**")
    assert verdict.metrics()["holds"] == 1
    assert verdict.metrics()["effect_n"] == 6
