"""Claim 8, the ablation. Evidence: the verdict flips with the table, and figures show divergence."""

import numpy as np
import pandas as pd
import pytest

from workbench.claims import ablation as claim

ARMS = [claim.WHOLE, "one 3x3 conv", "ReLU"]
COSTS = pd.DataFrame({"arm": ARMS, "cost": [1.0, 0.7, 0.9], "low": [1.0, 0.65, 0.85], "high": [1.0, 0.75, 0.95]})


def tables(time=(0.0, 0.0), steps=(0.0, 0.0)):
    """Costs, screening and eight fresh seeds. `time` and `steps` are the effects of leaving out each part."""
    rng, rows = np.random.default_rng(1), []
    for protocol, changes in ((claim.TIME, time), (claim.STEPS, steps)):
        for arm, change in zip(ARMS, (0.0, *changes), strict=True):
            luck = rng.normal(0, 0.002, 8)
            for seed, accuracy in enumerate(0.5 + change + luck - luck.mean()):
                rows.append(
                    {"protocol": protocol, "arm": arm, "lr": 0.4, "seed": seed, "steps": 100, "outcome": "complete",
                     "failed": 0, "val_acc": accuracy, "test_acc": accuracy, "train_loss": 0.6, "val_loss": 1.0}
                )  # fmt: skip
    confirmed = pd.DataFrame(rows)
    return COSTS, confirmed[confirmed.protocol == claim.TIME].drop(columns="test_acc"), confirmed


def test_every_part_must_pay_and_the_one_that_is_worth_least_decides():
    worth, one_costs, none = (claim.judge(*tables(time=c)) for c in ((-0.03, -0.01), (0.02, -0.02), (-0.03, 0.0)))
    assert worth.holds is True and worth.effect.value.mean == pytest.approx(0.01, abs=0.002) and worth.effect.p < 1e-3
    assert one_costs.holds is False and one_costs.effect.value.mean == pytest.approx(-0.02, abs=0.002)
    single = (
        claim.summary(*tables(time=(0.02, -0.02))[::2]).set_index(["protocol", "arm"]).p[claim.TIME, "one 3x3 conv"]
    )
    assert one_costs.effect.p == pytest.approx(2 * single)  # Holm over two parts
    assert none.holds is None
    assert claim.judge(*tables(steps=(-0.03, -0.03))).holds is None  # the other protocol decides nothing


def test_a_part_may_be_worth_it_at_equal_steps_only():
    rows = claim.judge(*tables(steps=(-0.03, 0.0))).table.set_index("arm")
    part, other = rows.loc["one 3x3 conv"], rows.loc["ReLU"]
    assert part.p_holm > 0.05 and part.p_holm_equal_steps < 0.05 < other.p_holm_equal_steps
    assert part.points_equal_steps == pytest.approx(-3, abs=0.3) and part.points == pytest.approx(0, abs=0.3)
    assert (part.cost, part.matched_cost) == (0.7, 1.0)  # equal numbers of steps match an equal cost


def test_the_papers_own_start_is_no_part():
    costs, screened, confirmed = tables(time=(-0.03, -0.01))
    start = confirmed[confirmed.arm == "ReLU"].assign(arm=claim.PAPERS_START, test_acc=0.6)
    verdict = claim.judge(costs, screened, pd.concat([confirmed, start]))
    assert verdict.holds is True
    assert np.isnan(verdict.table.set_index("arm").p_holm[claim.PAPERS_START])


def test_without_overfitting_the_claim_is_not_testable():
    costs, screened, confirmed = tables(time=(-0.03, -0.01))
    verdict = claim.judge(costs, screened, confirmed.assign(train_loss=0.75))
    assert (verdict.holds, verdict.testable, verdict.precondition.measured) == (None, False, "+0.25 nats")


def test_the_summary_has_one_row_per_protocol_and_arm_with_its_cost():
    costs, _, confirmed = tables()
    table = claim.summary(costs, confirmed)
    assert len(table) == 6 and list(table.cost) == [1.0, 0.7, 0.9] * 2
    assert table[table.arm != claim.WHOLE].p_holm.notna().all()


def test_the_figure_marks_failed_trainings():
    costs, screened, confirmed = tables()
    diverged = (confirmed.arm == "ReLU") & (confirmed.seed == 3) & (confirmed.protocol == claim.TIME)
    confirmed.loc[diverged, "failed"] = 1
    axes = claim.figure(costs, screened, confirmed).axes
    crosses = [sum(len(line.get_xdata()) for line in ax.lines if line.get_marker() == "x") for ax in axes]
    assert crosses == [1, 0, 0] and axes[-1].get_xlabel()
