"""BatchNorm removed from a user's network. Evidence: the verdict flips with the table."""

import math

import pandas as pd
import pytest

from workbench.claims import own_network
from workbench.claims.own_network import judge
from workbench.lab.studies.parameters import Range
from workbench.probes.noise import NoiseScale


def table(nf, bn=None, failed=0.0):
    rows = [{"arm": "NF+AGC", "seed": i, "test_acc": a, "clip": 0.02} for i, a in enumerate(nf)]
    rows += [{"arm": "BN", "seed": i, "test_acc": a, "clip": None} for i, a in enumerate(bn or [])]
    return pd.DataFrame(rows).assign(lr=0.4, batch_size=64, weights=None, failed=failed, outcome="complete")


TRIALS = pd.DataFrame(
    {
        "arm": ["NF+AGC"] * 3 + ["BN"],
        "state": ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"],
        "outcome": ["complete", "complete", "pruned", "complete"],
        "clip": [0.01, 0.04, 0.3, None],
        "val_acc": [0.9, 0.89, 0.2, 0.9],
    }
)


@pytest.mark.parametrize(
    ("nf", "bn", "holds"),
    [([0.90, 0.91, 0.92], [0.901, 0.911, 0.921], True), ([0.90, 0.91, 0.92], [0.93, 0.94, 0.951], False),
     ([0.9, 0.8, 0.95], [0.9, 0.9, 0.9], None)],
)  # fmt: skip
def test_the_verdict_is_within_half_a_point_or_beyond_or_undecided(nf, bn, holds):
    verdict = judge(TRIALS, table(nf, bn))
    assert verdict.holds is holds
    assert verdict.effect.value.mean == pytest.approx(sum(nf) / 3 - sum(bn) / 3)
    (good,) = verdict.table[verdict.table.value.isna()].itertuples()
    assert (good.low, good.high, good.n) == (0.01, 0.04, 2)


def test_the_table_names_a_best_value_at_an_end_of_its_range():
    rates = {"low": 0.1, "high": 10.0, "log": True}  # two decades: the last tenth begins at 10^0.8 = 6.31
    confirmed = table([0.9, 0.91], [0.9, 0.9])
    is_bn = confirmed.arm == "BN"
    confirmed["lr"], confirmed["clip"] = is_bn.map({True: 6.4, False: 6.2}), is_bn.map({True: None, False: 0.01})
    rows = judge(TRIALS, confirmed, ranges={"lr": rates, "clip": 0.01}).table
    (end,) = rows[rows.advice == own_network.FURTHER].itertuples()
    assert "`lr` of BN" in end.fact and (end.value, end.low, end.high) == (6.4, 0.1, 10.0)
    clips = Range(0.01, 0.16, log=True)
    rows = judge(TRIALS, confirmed, ranges={"lr": 6.4, "clip": clips}).table
    (end,) = rows[rows.advice == own_network.FURTHER].itertuples()
    assert "`clip` of NF+AGC" in end.fact and (end.value, end.low, end.high) == (0.01, 0.01, 0.16)


def test_the_table_separates_collapsed_from_diverged_trainings():
    confirmed = table([0.3, 0.3], [0.3, 0.3]).assign(failed=[1, 1, 1, 0])
    confirmed["outcome"] = ["collapsed", "diverged", "collapsed", "complete"]
    collapsed = judge(TRIALS, confirmed).table.dropna(subset="failed")
    assert (list(collapsed.failed), list(collapsed.collapsed)) == ([2, 1], [1, 1]) and set(collapsed.advice) == {
        own_network.LONGER
    }
    confirmed["outcome"] = ["diverged", "diverged", "diverged", "complete"]
    diverged = judge(TRIALS, confirmed).table.dropna(subset="failed")
    assert (list(diverged.failed), list(diverged.collapsed)) == ([2, 1], [0, 0]) and set(diverged.advice) == {""}


def test_a_verdict_without_a_control_or_without_a_training():
    assert judge(TRIALS, table([0.5, 0.6])).holds is None
    nothing = judge(TRIALS, table([], [0.9]))
    assert nothing.holds is None and nothing.effect.value.n == 0 and set(nothing.table.arm) == {"NF+AGC", "BN"}
    assert judge(TRIALS, pd.DataFrame()).effect.value.n == 0


@pytest.mark.parametrize(
    ("scale", "interval", "advice"),
    [(900.0, (500.0, 2000.0), own_network.LARGER), (900.0, (500.0, math.inf), own_network.LARGER),
     (20.0, (10.0, 40.0), own_network.ENOUGH), (90.0, (40.0, 200.0), own_network.ABOUT),
     (90.0, (10.0, math.inf), None)],
)  # fmt: skip
def test_the_table_advises_on_larger_batches(scale, interval, advice):
    noise = NoiseScale(noise_scale=scale, grad_sq=1.0, trace=scale, interval=interval, batch=64, batches=8)
    row = judge(TRIALS, table([0.9, 0.9], [0.9, 0.9]), noise).table.iloc[-1]
    assert (row.value, row.low, row.high) == (scale, *interval)
    assert row.advice == (advice or noise.note)
