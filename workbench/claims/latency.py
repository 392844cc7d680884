"""Claim 10: a network reaches an accuracy sooner without normalization than with BatchNorm.

Source: NFNet paper, section 1 and table 3 (BatchNorm is expensive; time of a step at equal accuracy). Both networks
have the same size. All arms tune in the same way and with as many trials: NF+AGC tries several thresholds, as the paper
does, and the others a finer grid of rates. The two best settings of each arm on the validation split are confirmed.

The time of a training is its steps times the measured time of a step, so a busy machine affects all arms alike.

Target, written down before the run: nine tenths of BN's mean validation accuracy at the end. A diverged training counts
as guessing. A seed that never reaches the target counts with twice the time of its whole training.

Contrast, written down before the run: the time to the target, NF+AGC over BN, in doublings, paired by seed. The result
must be the same at the least and at the greatest time of a step that a round measured.

Tables:
    costs: Times of a step, as `step_costs` returns them. BN comes first, and once more as control.
    screened: One row per training. Columns arm, clip, lr, seed, val_acc.
    confirmed: Columns arm, clip, lr, seed, val_acc, test_acc, steps, outcome.
    curves: Columns arm, seed, step, val_acc.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.intervals import accuracy_interval, difference_p, t_interval, with_ci
from workbench.lab.statistics.preconditions import BATCHNORM, batchnorm_trained_out
from workbench.lab.statistics.rates import with_edges
from workbench.lab.statistics.undecided import nothing_to_compare
from workbench.lab.statistics.verdict import Effect, Verdict

CLAIM = Claim(
    "A normalizer-free net reaches an accuracy sooner than its BatchNorm twin",
    precondition=BATCHNORM,
    number=10,
    tables=("costs", "screened", "confirmed", "curves"),
    unit="doublings",
    also=("race",),
)

SHARE = 0.9  # of BN's accuracy at the end
CONTROL = "BN again"


def times(costs: pd.DataFrame, confirmed: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Measure the time to the target of each training, in steps of BN.

    Returns:
        One row per training. Columns arm, seed, reached (whether it reached the target), time.
    """
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
    """Judge whether NF+AGC reaches the target sooner than BN."""
    if (undecided := nothing_to_compare(confirmed, "NF+AGC", "BN", tried=screened)) is not None:
        return undecided
    timings = times(costs, confirmed, curves)
    by_arm = timings.pivot_table(index="seed", columns="arm", values="time")
    doublings = np.log2(by_arm["NF+AGC"] / by_arm["BN"]).dropna()
    p = _p_whatever_the_cost(doublings, costs.set_index("arm").loc["NF+AGC"])
    effect = Effect("doublings of the time to accuracy, NF+AGC over BN", t_interval(doublings), p)
    no_target = timings[timings.arm == "BN"].reached.mean() < 0.5
    holds = None if no_target or not p < 0.05 else bool(effect.value.mean < 0)
    relation = {True: "reaches the target accuracy sooner than BN", False: "reaches the target accuracy later than BN",
                None: "is not shown to reach the target accuracy sooner than BN"}[holds]  # fmt: skip
    relation = "cannot be compared with BN, which rarely reaches the target" if no_target else relation
    ratio = with_ci(effect.value.map(np.exp2), " times BN's time")
    headline = f"NF+AGC {relation}: {ratio}."
    verdict = Verdict(holds, effect, headline, with_edges(_details(costs, confirmed, timings), screened))
    return verdict.on(batchnorm_trained_out(CLAIM.precondition, confirmed))


def _details(costs: pd.DataFrame, confirmed: pd.DataFrame, timings: pd.DataFrame) -> pd.DataFrame:
    """One row per confirmed arm, and one for the control.

    The columns are the time of a step, the number of seeds at the target, and the accuracy at the end.
    """
    reached = timings.groupby("arm").reached.sum()
    rows = []
    for step in costs[costs.arm.isin([*confirmed.arm, CONTROL])].itertuples():
        row = {"arm": step.arm, "step_time": step.cost, "low": step.low, "high": step.high}
        trained = confirmed[confirmed.arm == step.arm]
        if len(trained):
            accuracy = accuracy_interval(trained.test_acc)
            row |= {"target": _target(confirmed), "reached": int(reached[step.arm]), "n": len(trained),
                    "lr": trained.lr.iloc[0], "clip": trained["clip"].iloc[0], "accuracy": accuracy.mean,
                    "accuracy_low": accuracy.low, "accuracy_high": accuracy.high}  # fmt: skip
        rows.append(row)
    return pd.DataFrame(rows)


def _p_whatever_the_cost(doublings: pd.Series, cost: pd.Series) -> float:
    """Return the largest p-value over the measured times of a step.

    It is 1 if the side of the contrast depends on which of them is taken.
    """
    shifted = [doublings + np.log2(at / cost.cost) for at in (cost.low, cost.cost, cost.high)]
    sides = {np.sign(values.mean()) for values in shifted}
    return max(difference_p(values) for values in shifted) if len(sides) == 1 else 1.0


def figure(costs: pd.DataFrame, screened: pd.DataFrame, confirmed: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Draw the time of a step relative to BN, and accuracy over time with the target.

    The left panel has medians and ranges over rounds, the right one means and 95 % intervals over seeds.
    """
    from workbench.lab import plots

    figure, (left, right) = plots.panels(1, 2, (10, 4), width_ratios=[1, 1.5])
    grey = plots.Look("0.3", "D")
    plots.intervals(left, range(len(costs)), costs.cost, costs.low, costs.high, grey, across=True)
    left.axvline(1, color="0.6", lw=0.8)
    plots.name_axis(left.yaxis, list(costs.arm))
    left.set(xlabel="time of a step over BN's", title="a step, forward, backward and update")
    cost = costs.set_index("arm").cost
    for arm, look in plots.looks(dict.fromkeys(curves.arm)).items():
        over = curves[curves.arm == arm].groupby("step").val_acc
        reached = pd.DataFrame([accuracy_interval(values) for _, values in over])
        x = np.array(list(over.groups)) * cost[arm]
        right.plot(x, reached["mean"], f"{look.marker}-", color=look.color, ms=4, lw=1.2, label=arm)
        right.fill_between(x, reached.low, reached.high, color=look.color, alpha=0.15, lw=0)
    right.axhline(_target(confirmed), color="0.4", ls="--", lw=1, label="target")
    for arm, rows in confirmed[confirmed.outcome == "diverged"].groupby("arm"):
        right.plot([], [], "x", color=plots.FAILED, label=f"{arm}: {len(rows)} diverged")
    right.set(xlabel="time, in steps of BN", title="time to accuracy")
    plots.accuracy_axis(right, "validation")
    plots.legend_outside(figure)
    return figure
