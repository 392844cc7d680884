"""Claim 9, SAM and EMA. Evidence: the verdict flips with the table, figures show failures, the horizon by hand."""

import numpy as np
import pandas as pd
import pytest

from workbench.claims import sam_ema as claim

COSTS = pd.DataFrame({"arm": ["plain", "SAM"], "cost": [1.0, 1.25], "low": [1.0, 1.2], "high": [1.0, 1.3]})


def tables(**gain):
    """Costs, screening and eight fresh seeds. `gain` in accuracy by arm: SAM_EMA for both, LONGER for equal steps."""
    rng, rows = np.random.default_rng(0), []
    for arm in claim.ARMS:
        steps = 160 if arm in ("SAM", "SAM+EMA") else 200
        luck = rng.normal(0, 0.002, 8)
        name = arm.replace("+", "_").replace(claim.LONGER, "LONGER")
        for seed, accuracy in enumerate(0.5 + gain.get(name, 0) + luck - luck.mean()):
            rows.append(
                {"arm": arm, "lr": 0.4, "seed": seed, "steps": steps, "failed": 0, "val_acc": 0.5,
                 "train_loss": 0.6, "val_loss": 1.0, "outcome": "complete", "device_seconds": 10.0,
                 "test_acc": accuracy}
            )  # fmt: skip
    confirmed = pd.DataFrame(rows)
    return COSTS, confirmed.drop(columns="test_acc"), confirmed


def test_the_verdict_flips_with_the_effect_of_both_together():
    gain, loss, none = (claim.judge(*tables(SAM_EMA=g)) for g in (0.02, -0.02, 0.0))
    assert gain.holds is True and gain.effect.p < 0.01
    assert loss.holds is False and loss.effect.value.high < 0
    assert none.holds is None


def rows_of(*evidence):
    return claim.judge(*evidence).table.set_index("arm")


def test_each_arm_has_a_row_with_its_tests_and_costs():
    rows = rows_of(*tables(EMA=0.02, SAM_EMA=0.02))
    assert rows.points["EMA"] == pytest.approx(2, abs=0.3) and rows.p_equal["EMA"] > 0.05 > rows.p_holm["EMA"]
    assert rows.p_equal["SAM"] < 0.05 and np.isnan(rows.p_holm["SAM+EMA"])
    assert rows.steps[["plain", "SAM"]].tolist() == [200, 160]
    assert (rows.matched_cost["SAM"], rows.step_cost["SAM"]) == (1.25, 1.25)
    other = rows_of(COSTS.assign(cost=[1.0, 1.1]), *tables()[1:])  # the steps still match 1.25
    assert (other.matched_cost["SAM"], other.step_cost["SAM"]) == (1.25, 1.1)


def test_sam_with_equal_steps_has_a_separate_row():
    rows = rows_of(*tables(SAM=-0.02, LONGER=0.01))
    assert rows.points["SAM"] == pytest.approx(-2, abs=0.3) and rows.points[claim.LONGER] == pytest.approx(1, abs=0.3)
    costs, screened, confirmed = tables(SAM=-0.02)
    without = rows_of(costs, screened[screened.arm != claim.LONGER], confirmed[confirmed.arm != claim.LONGER])
    assert claim.LONGER not in without.index


def test_the_horizon_is_a_share_of_the_run():
    assert claim.decay(200, 0.05) == pytest.approx(0.9)  # ten steps
    assert claim.decay(10, 0.05) == 0  # less than one step, so the average is the weights


def test_the_figure_crosses_failed_seeds():
    costs, screened, confirmed = tables()
    confirmed.loc[confirmed.arm == "SAM", "failed"] = 1
    screened.loc[screened.arm == "plain", "failed"] = 1
    for ax, crosses in zip(claim.figure(costs, screened, confirmed).axes[:3], (8, 0, 1), strict=True):
        assert sum(len(line.get_xdata()) for line in ax.lines if line.get_marker() == "x") == crosses
