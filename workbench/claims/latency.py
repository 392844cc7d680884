"""Claim 10: without normalization a network of the same size is sooner at an accuracy than with BatchNorm.

Source: NFNet paper, section 1 and table 3 (BatchNorm is expensive; time of a step at equal accuracy). Every arm tunes
its rate alike, NF+AGC at each of several thresholds, as the paper does; of these the one best on the validation split
is confirmed, under a name that tells it ("NF+AGC at 0.04"). The time of a training is its steps times the measured
time of a step, so a busy machine falls on all arms alike. The target, written down before: nine tenths of BN's mean
validation accuracy at the end, guessing where it diverged. The contrast: the time to the target, NF+AGC over BN, in
doublings, paired by seed; it must stand at the least and at the greatest time of a step that a round measured. A seed
that never gets there counts with twice the time of its whole training. Tables: `costs` of a step as of evidence.pace,
BN first and once more as control; `confirmed` (arm, lr, seed, val_acc, test_acc, steps, outcome); `curves` (arm, seed,
step, val_acc).
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.intervals import accuracy_interval, difference_p, t_interval
from workbench.lab.statistics.rates import arm_of, edge_warnings
from workbench.lab.statistics.verdict import Verdict

CLAIM = Claim(
    "A normalizer-free net is sooner at an accuracy than its BatchNorm twin",
    number=10,
    tables=("costs", "screened", "confirmed", "curves"),
)

SHARE = 0.9  # of BN's accuracy at the end
CONTROL = "BN again"


def times(costs: pd.DataFrame, confirmed: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """One row a training: arm, seed, reached (whether it got to the target), and time to it, in steps of BN."""
    cost = costs.set_index("arm").cost
    target = _target(confirmed)
    rows = []
    for training in confirmed.itertuples():
        curve = curves[(curves.arm == training.arm) & (curves.seed == training.seed)].sort_values("step")
        at_target = curve[curve.val_acc >= target]
        steps = at_target.step.iloc[0] if len(at_target) else 2 * training.steps
        rows.append(
            {
                "arm": training.arm,
                "seed": training.seed,
                "reached": len(at_target) > 0,
                "time": steps * cost[training.arm],
            }
        )
    return pd.DataFrame(rows)


def _target(confirmed: pd.DataFrame) -> float:
    return SHARE * float(confirmed[confirmed.arm == "BN"].val_acc.mean())


def judge(costs: pd.DataFrame, screened: pd.DataFrame, confirmed: pd.DataFrame, curves: pd.DataFrame) -> Verdict:
    """Is NF+AGC sooner at the target than BN?"""
    timings = times(costs, confirmed, curves)
    by_arm = timings.pivot_table(index="seed", columns="arm", values="time")
    clipped = next(arm for arm in by_arm if arm_of(arm) == "NF+AGC")
    doublings = np.log2(by_arm[clipped] / by_arm["BN"]).dropna()
    effect, p = t_interval(doublings), _p_whatever_the_cost(doublings, costs.set_index("arm").loc[clipped])
    no_target = timings[timings.arm == "BN"].reached.mean() < 0.5
    holds = None if no_target or not p < 0.05 else bool(effect.mean < 0)
    relation = {True: "is sooner", False: "is later", None: "is not shown to be sooner or later"}[holds]
    steps = ", ".join(f"{row.arm} {row.cost:.2f} ({row.low:.2f}..{row.high:.2f})" for row in costs.itertuples())
    reached = ", ".join(f"{arm} {int(t.reached.sum())} of {len(t)}" for arm, t in timings.groupby("arm", sort=False))
    accuracies = {arm: (accuracy_interval(t.test_acc), t.lr.iloc[0]) for arm, t in confirmed.groupby("arm", sort=False)}
    ends = ", ".join(f"{arm} {accuracy:.1%} at {lr:.3g}" for arm, (accuracy, lr) in accuracies.items())
    sentence = (
        f"{clipped} {relation} at {_target(confirmed):.1%} validation accuracy than BN of the same shape: "
        f"{2**effect.mean:.2f} times its time; the target was reached by {reached}. Time of a step over BN's: {steps}. "
        f"Test accuracy at the end: {ends}."
    )
    sentence += " BN itself rarely gets there, so the target says nothing." if no_target else ""
    sentence += edge_warnings(screened)
    return Verdict(sentence, holds, "doublings of the time to accuracy, NF+AGC over BN", effect, p=p)


def _p_whatever_the_cost(doublings: pd.Series, cost: pd.Series) -> float:
    """The largest p-value over the times of a step that were measured; 1 where the side depends on which it is."""
    shifted = [doublings + np.log2(at / cost.cost) for at in (cost.low, cost.cost, cost.high)]
    sides = {np.sign(values.mean()) for values in shifted}
    return max(difference_p(values) for values in shifted) if len(sides) == 1 else 1.0


def figure(costs: pd.DataFrame, screened: pd.DataFrame, confirmed: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Left: time of a step beside BN's, median and range over rounds. Right: accuracy over time, mean and 95 %
    interval over seeds, with the target."""
    import matplotlib.pyplot as plt

    from workbench.lab import plots

    plots.style()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", width_ratios=[1, 1.5])
    bounds = np.clip([costs.cost - costs.low, costs.high - costs.cost], 0, None)
    left.errorbar(costs.cost, range(len(costs)), xerr=bounds, fmt="D", ms=5, capsize=3, lw=1.2, color="0.3")
    left.axvline(1, color="0.6", lw=0.8)
    left.set_yticks(range(len(costs)), costs.arm)
    left.invert_yaxis()
    left.set(xlabel="time of a step over BN's", title="a step, forward, backward and update")
    cost = costs.set_index("arm").cost
    for i, (arm, rows) in enumerate(curves.groupby("arm", sort=False)):
        look, over = plots.look_of(arm_of(arm), i), rows.groupby("step").val_acc
        intervals = [accuracy_interval(v) for _, v in over]
        x = np.array(list(over.groups)) * cost[arm]
        right.plot(x, [v.mean for v in intervals], f"{look['fmt']}-", color=look["color"], ms=4, lw=1.2, label=arm)
        ends = ([v.low for v in intervals], [v.high for v in intervals])
        right.fill_between(x, *ends, color=look["color"], alpha=0.15, lw=0)
    right.axhline(_target(confirmed), color="0.4", ls="--", lw=1, label="target")
    lost = confirmed[confirmed.outcome == "diverged"]
    for arm, rows in lost.groupby("arm"):
        right.plot([], [], "x", color="#d55e00", label=f"{arm}: {len(rows)} diverged")
    right.set(xlabel="time, in steps of BN", ylabel="validation accuracy", title="time to accuracy")
    right.legend(frameon=False, fontsize="small")
    return figure
