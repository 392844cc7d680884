"""Claim 5, small batches. Evidence: the verdict flips with the table, figures show failures, the grid is per image."""

import numpy as np
import pandas as pd
import pytest

from workbench.claims import small_batch as claim
from workbench.lab.statistics.rates import best_rates


def tables(**loss):
    """Eight seeds at batches 4, 32 and 128. Each arm loses `loss` at batch 4, and half of it at 32."""
    rng, rows = np.random.default_rng(0), []
    names = {"bn": "BN", "recomputed": "BN recomputed", "gn": "GN", "nf": "NF", "agc": "NF+AGC"}
    for short, arm in names.items():
        for batch, share in ((4, 1.0), (32, 0.5), (128, 0.0)):
            luck = rng.normal(0, 0.003, 8)
            for seed, accuracy in enumerate(0.5 - share * loss.get(short, 0.0) + luck - luck.mean()):
                rows.append(
                    {"arm": arm, "batch_size": batch, "lr": 0.4, "seed": seed, "failed": 0, "test_acc": accuracy,
                     "val_acc": 0.9, "clip": {4: 0.16}.get(batch, 0.04)}
                )  # fmt: skip
    confirmed = pd.DataFrame(rows)
    return confirmed.drop(columns="test_acc"), confirmed


def test_the_verdict_flips_with_the_loss_of_batchnorm():
    lost = claim.judge(*tables(bn=0.1, recomputed=0.1))
    assert lost.holds is True and lost.effect.value.mean == pytest.approx(0.1, abs=0.005) and lost.effect.p < 1e-4
    kept = claim.judge(*tables(agc=0.1))
    assert kept.holds is False and kept.effect.value.high < 0
    assert claim.judge(*tables(bn=0.1, recomputed=0.1, agc=0.1)).holds is None


def test_the_table_tests_whether_the_clipped_net_keeps_its_accuracy():
    kept, lost = (claim.judge(*tables(bn=0.1, agc=agc)).table.set_index("arm").loc["NF+AGC"] for agc in (0.0, 0.02))
    assert kept.p_kept < 0.05 < lost.p_kept and lost.points == pytest.approx(-2, abs=0.5)


def test_recomputed_statistics_have_a_separate_row():
    rows = claim.judge(*tables(bn=0.1)).table.set_index("arm")
    assert abs(rows.agc_keeps["BN recomputed"]) < 0.6  # points: with recomputed statistics nothing is lost
    assert rows.agc_keeps["BN"] == pytest.approx(10, abs=0.6) and np.isnan(rows.agc_keeps["NF+AGC"])
    assert set(rows.failed) == {0} and rows.clips["NF+AGC"] == "0.16 at 4, 0.04 at 32, 0.04 at 128"


def test_changes_are_paired_with_the_largest_batch_and_holm_leaves_it_out():
    table = claim.changes(tables(bn=0.1)[1]).set_index(["arm", "batch_size"])
    assert table.change["BN", 4] == pytest.approx(-0.1, abs=0.005)
    assert table.change["BN", 128] == 0 and np.isnan(table.p_holm["BN", 128])
    assert table.p_holm["BN", 4] == pytest.approx(table.p.min() * 10)  # the smallest of ten p-values


def test_the_best_rate_is_from_the_grid_of_rates_per_image():
    rows = [
        {"arm": "NF", "batch_size": b, "base_lr": base, "lr": base * b / 256, "val_acc": 0.3 + (base == 0.8) * 0.1}
        for b in (4, 128)
        for base in (0.2, 0.8, 3.2)
    ]
    best = best_rates(claim.per_image(pd.DataFrame(rows)), by=["batch_size"])
    assert list(best.lr) == [0.8, 0.8] and not best.at_edge.any()


def test_the_figure_crosses_failed_seeds():
    screened, confirmed = tables(bn=0.1)
    confirmed.loc[(confirmed.arm == "NF") & (confirmed.batch_size == 4), "failed"] = 1
    axes = claim.figure(screened, confirmed).axes
    assert sum(len(line.get_xdata()) for line in axes[0].lines if line.get_marker() == "x") == 1
    row = claim.judge(screened, confirmed).table.set_index("arm").loc["NF"]
    assert (row.failed, row.n) == (8, 24)
    assert [text.get_text() for text in axes[0].get_yticklabels()] == claim.ARMS
