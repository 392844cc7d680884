"""Pairs of arms. Evidence: differences by hand. Each arm counts at its best rate, and unpaired rows are left out."""

import pandas as pd
import pytest
from typer.testing import CliRunner

from workbench.cli import app
from workbench.lab.statistics.intervals import t_interval
from workbench.lab.statistics.pairs import pairs


def rows(arm, batch, lr, accuracies, score="test_acc", **more):
    return [
        {"arm": arm, "batch_size": batch, "lr": lr, "seed": seed, "val_acc": value, score: value} | more
        for seed, value in enumerate(accuracies)
    ]


def test_two_arms_and_two_batches_by_hand():
    table = pd.DataFrame(
        rows("BN", 4, 0.1, [0.4, 0.5, 0.6])
        + rows("NF", 4, 0.1, [0.3, 0.5, 0.4])
        + rows("BN", 128, 0.1, [0.6, 0.6, 0.6])
    )
    differences = pairs(table).set_index(["a", "b"])
    assert list(differences.index) == [("BN, batch 4", "NF, batch 4"), ("BN, batch 4", "BN, batch 128")]
    expected = t_interval([0.1, 0.0, 0.2])
    row = differences.loc[("BN, batch 4", "NF, batch 4")]
    assert (row.difference, row.low, row.high, row.n) == pytest.approx((0.1, expected.low, expected.high, 3))
    assert row.p == pytest.approx(0.2254, abs=1e-4)  # t = 0.1 / (0.1 / sqrt 3) = 1.732 with two degrees of freedom


def test_an_arm_with_several_rates_counts_at_its_best_and_only_common_seeds_pair():
    table = pd.DataFrame(
        rows("BN", 64, 0.1, [0.2, 0.3]) + rows("BN", 64, 0.4, [0.5, 0.7]) + rows("NF", 64, 0.4, [0.4, 0.4, 0.9])
    )  # fmt: skip
    (row,) = pairs(table).itertuples()
    assert (row.a, row.b, row.n) == ("BN", "NF", 2) and row.difference == pytest.approx(0.2)


def test_pairs_name_micro_batches_and_protocols_and_use_validation_without_a_test():
    parts = pd.DataFrame(
        rows("NF", 256, 0.4, [0.4, 0.5], "val_acc", micro_batch=None)
        + rows("NF", 256, 0.4, [0.4, 0.6], "val_acc", micro_batch=16.0)
    )
    (row,) = pairs(parts).itertuples()
    assert (row.a, row.b) == ("NF, micro-batch whole", "NF, micro-batch 16") and row.difference == pytest.approx(-0.05)
    ways = pd.DataFrame(
        rows("NF", 256, 0.4, [0.4, 0.5], protocol="tuned") + rows("NF", 256, 0.4, [0.5, 0.5], protocol="paper's")
    )
    assert pairs(ways).a.item() == "NF, tuned protocol"


def test_no_pairs_without_arms_or_with_seeds_that_trained_twice():
    assert pairs(pd.DataFrame({"block": [1], "variance": [1.0]})).empty
    assert pairs(pd.DataFrame(rows("NF", 64, 0.4, [0.4, 0.5]) * 2 + rows("BN", 64, 0.4, [0.4, 0.5]))).empty


def test_the_claims_command_prints_pairs_below_the_verdict():
    text = CliRunner().invoke(app, ["claims", "small_batch", "accumulation", "--from", "docs", "--pairs"]).output
    assert "a minus b [95 %]" in text and "+0.5 points [-0.5, +1.5]" in text  # BN minus NF+AGC at batch 4: see LOG.md
    assert "micro-batch whole" in text
    none = CliRunner().invoke(app, ["claims", "signal_propagation", "--from", "docs", "--pairs"]).output
    assert "no arms to set side by side" in none
