"""Large batches. Evidence: discordant cells, and kept and scaled rates, worked out by hand."""

import math

import pandas as pd
import pytest
from support.batches import batch_table

from workbench.claims import large_batch


def test_many_cells_of_five_seeds_are_no_more_evidence_than_five_seeds():
    """Clipping prevents failure at ten rates, so each seed has ten cells. Only the five seeds count."""
    grid = pd.concat([batch_table(5, 0, cells=5).assign(lr=lr) for lr in range(1, 11)])
    verdict = large_batch.judge(grid)
    assert verdict.holds is None and verdict.effect.p == pytest.approx(2 / 2**5)
    plain = verdict.table.set_index("arm").loc["NF"]
    assert (plain.fails_alone, plain.agc_fails_alone) == (50, 0)
    assert verdict.effect.value.n == 5 and verdict.effect.value.low < 0.5


def test_large_batch_counts_the_seeds_and_their_cells():
    for_agc, against, neither = (large_batch.judge(batch_table(*n)) for n in ((6, 0), (0, 6), (0, 0)))
    assert for_agc.holds is True and against.holds is False
    plain = [verdict.table.set_index("arm").loc["NF"] for verdict in (for_agc, against)]
    assert [(row.fails_alone, row.agc_fails_alone) for row in plain] == [(6, 0), (0, 6)]
    assert neither.holds is None and neither.effect.value.n == 0
    assert for_agc.table.set_index("arm").failed.to_dict() == {"NF": 6, "NF+AGC": 0, "BN": 0}
    assert set(for_agc.table.n) == {6}


def grid():
    """Five seeds per cell, one point between them.

    Rate 0.4 is best at the smaller batch. Scaled with the batch it is 1.6, where one seed fails.
    """
    return pd.DataFrame(
        {"arm": arm, "batch_size": batch, "lr": lr, "seed": seed, "val_acc": accuracy + 0.01 * seed,
         "failed": int(batch == 256 and lr == 1.6 and seed == 0), "val_loss": 1.0, "data": "cifar10",
         "outcome": "diverged" if batch == 256 and lr == 1.6 and seed == 0 else "complete"}
        for arm in ("NF", "NF+AGC")
        for batch, lr, accuracy in ((64, 0.4, 0.5), (64, 1.6, 0.4), (256, 0.4, 0.6), (256, 1.6, 0.3), (256, 6.4, 0.9))
        for seed in range(5)
        if not (arm == "NF" and lr == 6.4)
    )  # fmt: skip


def test_a_rate_is_tuned_kept_and_scaled():
    protocol_table = large_batch.protocols(grid())
    rows = protocol_table[protocol_table.batch_size == 256].set_index(["arm", "protocol"])
    assert rows.lr.to_dict() == {
        ("NF", "tuned"): 0.4,
        ("NF", "rate kept"): 0.4,
        ("NF", "rate scaled"): 1.6,
        ("NF+AGC", "tuned"): 6.4,
        ("NF+AGC", "rate kept"): 0.4,
        ("NF+AGC", "rate scaled"): 1.6,
    }
    scaled = rows.loc[("NF", "rate scaled")]
    assert scaled.accuracy == pytest.approx(0.32)
    assert scaled.best_four_of_five == pytest.approx(0.325)  # the last four of 30 to 34 %
    assert (scaled.n, scaled.failed) == (5, 1)
    assert protocol_table[protocol_table.batch_size == 64].protocol.tolist() == ["tuned"] * 2


def test_the_table_has_the_largest_batch_by_every_protocol():
    rows = large_batch.judge(grid()).table.set_index("arm")
    assert set(rows.batch_size) == {256} and rows.lr.to_dict() == {"NF": 0.4, "NF+AGC": 6.4}
    assert rows.accuracy.to_dict() == pytest.approx({"NF": 0.62, "NF+AGC": 0.92})
    assert rows.rate_kept.to_dict() == pytest.approx({"NF": 0.62, "NF+AGC": 0.62})
    assert rows.rate_scaled["NF"] == pytest.approx(0.325) and rows.rate_scaled_failed["NF"] == 1


def test_a_scaled_rate_off_the_grid_is_left_out():
    protocol_table = large_batch.protocols(grid()[lambda t: t.lr != 1.6])
    assert "rate scaled" not in protocol_table.protocol.tolist()


def test_an_answer_that_only_some_failure_lines_give_depends_on_the_line():
    """Without clipping, six seeds end between two of the lines."""
    table = batch_table(6, 0).assign(outcome="complete")
    table.loc[table.failed == 1, "val_loss"] = 0.93 * math.log(10)
    verdict = large_batch.judge(table)
    assert verdict.depends_on_line and verdict.answer == "Depends on the failure line"
    assert verdict.curve.set_index("line").holds.map(lambda holds: holds is True).to_dict() == {
        0.85: True, 0.90: True, 0.95: False, 0.97: False, 0.99: False
    }  # fmt: skip
