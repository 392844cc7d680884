"""Claim 2. Evidence: discordant cells counted by hand; rates kept and scaled looked up by hand."""

import pandas as pd
import pytest
from support.batches import batch_table

from workbench.claims import large_batch


def test_many_cells_of_a_few_seeds_are_a_few_seeds():
    """Ten rates, of which clipping saves every one: ten cells a seed, and no more evidence than the seeds."""
    grid = pd.concat([batch_table(5, 0, cells=5).assign(lr=lr) for lr in range(1, 11)])
    verdict = large_batch.judge(grid)
    assert (
        verdict.holds is None and verdict.p == pytest.approx(2 / 2**5) and "In 50 of the 50 cells" in verdict.sentence
    )
    assert verdict.effect.n == 5 and verdict.effect.low < 0.5


def test_large_batch_counts_the_seeds_and_their_cells():
    for_agc, against, neither = (large_batch.judge(batch_table(*n)) for n in ((6, 0), (0, 6), (0, 0)))
    assert for_agc.holds is True and "In 6 of the 6 cells" in for_agc.sentence
    assert against.holds is False and "In 0 of the 6 cells" in against.sentence
    assert neither.holds is None and neither.effect.n == 0
    assert "NF 6 of 6, NF+AGC 0 of 6, BN 0 of 6" in for_agc.sentence


def grid():
    """Five seeds a cell, a point apart; rate 0.4 is best at both batches, and 1.6, scaled with the batch, fails once."""
    return pd.DataFrame(
        {"arm": arm, "batch_size": batch, "lr": lr, "seed": seed, "val_acc": accuracy + 0.01 * seed,
         "failed": int(batch == 256 and lr == 1.6 and seed == 0)}
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
    assert scaled.best_four_of_five == pytest.approx(0.325)  # of 30 to 34 % the last four
    assert (scaled.n, scaled.failed) == (5, 1)
    assert protocol_table[protocol_table.batch_size == 64].protocol.tolist() == ["tuned"] * 2


def test_the_verdict_tells_both_protocols():
    sentence = large_batch.judge(grid()).sentence
    assert "batch 256, that rate scaled, the worst seed left out: NF 32.5% at 1.6 (1 of 5 failed)" in sentence
    assert "batch 256: NF 62.0%" in sentence and "NF+AGC 92.0%" in sentence


def test_a_scaled_rate_off_the_grid_is_left_out():
    protocol_table = large_batch.protocols(grid()[lambda t: t.lr != 1.6])
    assert "rate scaled" not in protocol_table.protocol.tolist()
