"""Claim 9, SAM and EMA. Evidence: the sentence flips with the table; failures show; the horizon by hand."""

import numpy as np
import pandas as pd
import pytest

from workbench.claims import sam_ema as claim

COSTS = pd.DataFrame({"arm": ["plain", "SAM"], "cost": [1.0, 1.25], "low": [1.0, 1.2], "high": [1.0, 1.3]})


def tables(**gain):
    """Costs, screening and eight fresh seeds; `gain` in accuracy by arm, SAM_EMA for both, LONGER for equal steps."""
    rng, rows = np.random.default_rng(0), []
    for arm in claim.ARMS:
        steps = 160 if arm in ("SAM", "SAM+EMA") else 200
        luck = rng.normal(0, 0.002, 8)
        for seed, accuracy in enumerate(
            0.5 + gain.get(arm.replace("+", "_").replace(claim.LONGER, "LONGER"), 0) + luck - luck.mean()
        ):
            rows.append(
                {"arm": arm, "lr": 0.4, "seed": seed, "steps": steps, "failed": 0, "val_acc": 0.5, "outcome": "complete",
                 "device_seconds": 10.0, "test_acc": accuracy}
            )  # fmt: skip
    confirmed = pd.DataFrame(rows)
    return COSTS, confirmed.drop(columns="test_acc"), confirmed


def test_both_that_gain_hold_both_that_lose_do_not():
    gain, loss, none = (claim.judge(*tables(SAM_EMA=g)) for g in (0.02, -0.02, 0.0))
    assert gain.holds is True and "together add accuracy" in gain.sentence and gain.p < 0.01
    assert loss.holds is False and "together cost accuracy" in loss.sentence
    assert none.holds is None and "not shown to change accuracy" in none.sentence


def test_each_alone_is_said_with_holm_and_equality():
    sentence = claim.judge(*tables(EMA=0.02, SAM_EMA=0.02)).sentence
    alone = sentence.partition("Alone: ")[2]
    ema, sam = alone.partition("; ")[::2]
    assert ema.startswith("EMA +2") and "equal" not in ema
    assert sam.startswith("SAM ") and "equal within 0.5 points" in sam.partition(")")[0]
    assert "160 steps for 200, which is equal time where a step costs 1.25 of a plain one" in sentence
    other = claim.judge(COSTS.assign(cost=[1.0, 1.1]), *tables()[1:]).sentence  # matched by 1.25 all the same
    assert "costs 1.25 of a plain one; measured here it costs 1.10" in other


def test_sam_with_as_many_steps_is_told_apart_from_sam_at_equal_time():
    sentence = claim.judge(*tables(SAM=-0.02, LONGER=0.01)).sentence
    assert "SAM -2.0 points" in sentence and "as many steps as plain, in more time, SAM +1.0 points" in sentence
    costs, screened, confirmed = tables(SAM=-0.02)
    rest = confirmed[confirmed.arm != claim.LONGER]
    assert "as many steps" not in claim.judge(costs, screened[screened.arm != claim.LONGER], rest).sentence


def test_the_horizon_is_a_share_of_the_run():
    assert claim.decay(200, 0.05) == pytest.approx(0.9)  # ten steps
    assert claim.decay(10, 0.05) == 0  # less than a step: the weights themselves


def test_the_figure_crosses_what_failed():
    costs, screened, confirmed = tables()
    confirmed.loc[confirmed.arm == "SAM", "failed"] = 1
    screened.loc[screened.arm == "plain", "failed"] = 1
    for ax, crosses in zip(claim.figure(costs, screened, confirmed).axes, (8, 1, 1), strict=True):
        assert sum(len(line.get_xdata()) for line in ax.lines if line.get_marker() == "x") == crosses
