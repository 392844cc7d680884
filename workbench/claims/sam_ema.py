"""Claim 9: what sharpness-aware minimisation (SAM) and the average of the weights (EMA) add at equal device seconds.

Source: NFNet paper, section 4 (EMA; SAM on a fifth of the batch). Tables: `costs`, of a step, as of evidence.pace;
`screened` and `confirmed`, one row a training and arm (those of ARMS), with lr, seed, steps, failed, val_acc,
device_seconds; `confirmed` also test_acc, each arm at its own best rate on fresh seeds. An average and its source are
one training read twice; with SAM there are fewer steps, by the measured cost, but in one arm, which tells how much of
the difference the missing steps are. The contrast, written down before the confirmation: test accuracy of SAM+EMA minus
plain, paired by seed.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.effects import beside, details, effect_of
from workbench.lab.statistics.intervals import accuracy_interval, points_with_ci, side
from workbench.lab.statistics.panels import draw_differences
from workbench.lab.statistics.rates import with_edges
from workbench.lab.statistics.verdict import Verdict

CLAIM = Claim(
    "SAM and the average of the weights add accuracy at equal time", number=9, tables=("costs", "screened", "confirmed")
)

AVERAGED = {"plain": "EMA", "SAM": "SAM+EMA"}  # the arm, and what it is called when its average is read
LONGER = "SAM, equal steps"
ARMS = ["plain", "EMA", "SAM", "SAM+EMA", LONGER]


def decay(steps: int, share: float) -> float:
    """The average's decay with a horizon of this share of the steps: 1 - 1 / (share * steps)."""
    return 1 - 1 / max(1.0, share * steps)


def summary(confirmed: pd.DataFrame) -> pd.DataFrame:
    """One row an arm: lr (its best rate), steps, device_seconds and accuracy (means), failed, n, and the difference to
    plain with low, high, p, p_holm and p_equal."""
    seconds = confirmed.groupby("arm").device_seconds.mean()
    table = beside(confirmed, "plain", ARMS, settings=("lr", "steps"), contrast="SAM+EMA")
    return table.assign(device_seconds=table.arm.map(seconds))


def judge(costs: pd.DataFrame, screened: pd.DataFrame, confirmed: pd.DataFrame) -> Verdict:
    """Do both together add accuracy at equal time? And each?"""
    effect = effect_of("accuracy with SAM and EMA minus plain", confirmed, "plain", "SAM+EMA")
    holds = side(effect.value)
    relation = {True: "add", False: "cost", None: "are not shown to change"}[holds]
    headline = f"At equal time SAM and EMA together {relation} accuracy: {points_with_ci(effect.value)}."
    return Verdict(holds, effect, headline, with_edges(_details(costs, confirmed), screened))


def _details(costs: pd.DataFrame, confirmed: pd.DataFrame) -> pd.DataFrame:
    """One row per arm. `matched_cost` is the time of a step at which its steps take plain's time, `step_cost` the
    measured one, `seconds` the device seconds over plain's."""
    rows = summary(confirmed)
    plain = rows.set_index("arm").loc["plain"]
    more = rows.assign(
        matched_cost=plain.steps / rows.steps,
        step_cost=rows.arm.map(costs.set_index("arm").cost),
        seconds=rows.device_seconds / plain.device_seconds,
    )
    return details(more, "lr", "steps", "matched_cost", "step_cost", "seconds", "p_equal")


def figure(costs: pd.DataFrame, screened: pd.DataFrame, confirmed: pd.DataFrame) -> Figure:
    """Accuracy beside the plain training; over the seconds that each took; and over the rate in screening."""
    import matplotlib.pyplot as plt

    from workbench.lab import plots

    plots.style()
    names = [arm for arm in ARMS if arm in set(confirmed.arm)]
    look = {arm: {"color": plots.CYCLE[i], "marker": "os^Dv"[i]} for i, arm in enumerate(ARMS)}
    figure, axes = plt.subplots(1, 3, figsize=(13.5, 3.9), layout="constrained", width_ratios=[1.3, 1, 1])
    draw_differences(axes[0], confirmed, "plain", names)
    axes[0].set(title="accuracy beside plain")
    for arm in names:
        rows = confirmed[confirmed.arm == arm]
        mean, x = accuracy_interval(rows.test_acc), rows.device_seconds.mean()
        half = 100 * np.nan_to_num([[mean.mean - mean.low], [mean.high - mean.mean]])
        axes[1].errorbar(x, 100 * mean.mean, half, ms=6, capsize=3, lw=0, elinewidth=1.2, label=arm, **look[arm])
        if rows.failed.any():
            axes[1].plot(x, 100 * mean.mean, "x", ms=11, color="black", zorder=5)
        over = screened[screened.arm == arm].groupby("lr").agg(val_acc=("val_acc", "mean"), failed=("failed", "max"))
        axes[2].plot(over.index, 100 * over.val_acc, lw=1.2, ms=5, **look[arm])
        lost = over[over.failed > 0]
        axes[2].plot(lost.index, 100 * lost.val_acc, "x", ms=10, color="black", zorder=5)
    axes[1].set(xlim=(0, 1.15 * axes[1].get_xlim()[1]), title="what it cost", xlabel="device seconds of a training",
                ylabel="test accuracy, %")  # fmt: skip
    axes[2].set(xscale="log", xlabel="peak learning rate", ylabel="validation accuracy, %", title="screening")
    axes[2].set_xticks(sorted(screened.lr.unique()), [f"{lr:g}" for lr in sorted(screened.lr.unique())])
    axes[2].xaxis.set_minor_locator(plt.NullLocator())
    axes[2].plot([], [], "x", ms=9, color="black", label="a training failed")
    axes[1].legend(frameon=False, fontsize="small", loc="lower left")
    axes[2].legend(frameon=False, fontsize="small")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=4, loc="outside lower center")
    return figure
