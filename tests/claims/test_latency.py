"""Claim 10. Evidence: times by hand from curves with known crossings. The verdict flips with the crossings."""

import pandas as pd
import pytest

from workbench.claims import latency
from workbench.lab.statistics.verdict import Verdict

COSTS = pd.DataFrame(
    {"arm": ["BN", "NF+AGC", "BN again"], "cost": [1.0, 0.8, 1.01], "low": [1.0, 0.7, 0.95], "high": [1.0, 0.9, 1.05]}
)


def tables(nf_step, final=0.9, bn_step=60):
    """BN reaches the target, 0.81, at `bn_step` of 100, NF+AGC at `nf_step`. Every other seed is ten steps later."""
    confirmed, curves = [], []
    for arm, clip, first in (("BN", None, bn_step), ("NF+AGC", 0.16, nf_step)):
        for seed in range(6):
            confirmed.append(
                {"arm": arm, "clip": clip, "seed": seed, "lr": 0.4, "val_acc": final, "test_acc": final,
                 "steps": 100, "outcome": "complete"}
            )  # fmt: skip
            for step in range(10, 101, 10):
                reached = step >= first + 10 * (seed % 2)
                curves.append({"arm": arm, "seed": seed, "step": step, "val_acc": final if reached else 0.2})
    return pd.DataFrame(confirmed), pd.DataFrame(curves)


def screened(best=0.4):
    """BN's accuracy over three rates, highest at `best`."""
    return pd.DataFrame({"arm": "BN", "lr": lr, "val_acc": 0.6 if lr == best else 0.5} for lr in (0.2, 0.4, 0.8))


def test_the_time_is_the_first_step_at_the_target_times_the_cost_of_a_step():
    times = latency.times(COSTS, *tables(40))
    first = times[times.seed == 0].set_index("arm")
    assert first.time["BN"] == 60 and first.time["NF+AGC"] == pytest.approx(40 * 0.8) and first.reached.all()


def test_the_verdict_flips_with_the_crossing():
    sooner: Verdict = latency.judge(COSTS, screened(), *tables(30))
    assert sooner.holds is True and sooner.effect.value.high < 0
    later = latency.judge(COSTS, screened(), *tables(90, bn_step=50))
    assert later.holds is False and later.effect.value.low > 0
    equal = latency.judge(COSTS.assign(cost=1.0, low=1.0, high=1.0), screened(), *tables(60))
    assert equal.holds is None


def test_a_side_that_depends_on_which_round_measured_the_step_is_not_decided():
    """The numbers of steps are equal, so only the step time decides. It is between 0.9 and 1.1 of BN's."""
    at = lambda low, high: COSTS.assign(cost=[1.0, 0.95, 1.0], low=[1.0, low, 1.0], high=[1.0, high, 1.0])
    assert latency.judge(at(0.9, 1.1), screened(), *tables(60)).holds is None
    verdict = latency.judge(at(0.9, 0.97), screened(), *tables(60))
    assert verdict.holds is True
    assert verdict.effect.p == pytest.approx(2 / 2**6)  # six equal differences, so the sign test


def test_without_a_trained_bn_there_is_no_verdict():
    confirmed, curves = tables(30)
    lost = (confirmed.arm == "BN") & (confirmed.seed < 5)
    confirmed.loc[lost, ["val_acc", "test_acc", "outcome"]] = 0.1, 0.1, "diverged"
    kept = curves[~((curves.arm == "BN") & (curves.seed < 5))]
    verdict = latency.judge(COSTS, screened(), confirmed, kept)
    assert verdict.holds is None
    rows = verdict.table.set_index("arm")
    assert rows.target["BN"] == pytest.approx(0.9 * (5 * 0.1 + 0.9) / 6)
    assert (rows.reached["BN"], rows.n["BN"]) == (1, 6)


def test_a_seed_that_never_reaches_the_target_counts_with_twice_its_training():
    times = latency.times(COSTS, *tables(1000))
    never = times[times.arm == "NF+AGC"]
    assert not never.reached.any() and (never.time == 2 * 100 * 0.8).all()
    rows = latency.judge(COSTS, screened(), *tables(1000)).table.set_index("arm")
    assert (rows.reached["NF+AGC"], rows.n["NF+AGC"]) == (0, 6) and rows.step_time["NF+AGC"] == 0.8


def test_the_figure_has_costs_curves_and_diverged_trainings():
    confirmed, curves = tables(40)
    confirmed.loc[0, "outcome"] = "diverged"
    figure = latency.figure(COSTS, screened(), confirmed, curves)
    left, _ = figure.axes
    assert [t.get_text() for t in left.get_yticklabels()] == ["BN", "NF+AGC", "BN again"]
    words = [t.get_text() for t in figure.legends[0].get_texts()]
    assert {"BN", "NF+AGC", "target", "BN: 1 diverged"} <= set(words)


def test_the_table_marks_a_best_rate_at_the_end_of_the_grid():
    inside, at_end = (latency.judge(COSTS, screened(best), *tables(90)).table.set_index("arm") for best in (0.4, 0.2))
    assert set(inside.at_edge) == {""}
    assert at_end.at_edge.to_dict() == {"BN": "rate", "NF+AGC": "", "BN again": ""}


def test_the_table_has_the_confirmed_threshold_and_only_its_edges():
    grid = screened().assign(arm="NF+AGC", clip=0.16)
    slow = [{"arm": "NF+AGC", "clip": 0.01, "lr": lr, "val_acc": lr} for lr in (0.2, 0.4)]  # best at its last rate
    all_screened = pd.concat([screened(), grid, pd.DataFrame(slow)])
    verdict = latency.judge(COSTS, all_screened, *tables(30))
    rows = verdict.table.set_index("arm")
    assert (
        rows.at_edge.to_dict() == {"BN": "", "NF+AGC": "threshold", "BN again": ""} and rows["clip"]["NF+AGC"] == 0.16
    )
    assert verdict.effect == latency.judge(COSTS, screened(), *tables(30)).effect
