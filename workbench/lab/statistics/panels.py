"""A figure for arms that screening tuned and fresh seeds confirmed.

It shows what each arm is worth, and which rates it tolerates.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.lab.statistics.effects import EQUAL
from workbench.lab.statistics.failure_line import collapsed
from workbench.lab.statistics.intervals import t_interval
from workbench.lab.statistics.rates import by_seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def effects_and_rates(screened: pd.DataFrame, confirmed: pd.DataFrame, against: str) -> Figure:
    """Draw what each arm is worth compared with one of them, and what screening measured.

    The left panel has paired differences of test accuracy. The right panel has every rate of the screening with its
    accuracy as colour. A cross marks rates with a failed seed, a plus those where all failed seeds
    collapsed.

    Args:
        screened: Columns arm, lr, seed, val_acc, failed.
        confirmed: Columns arm, lr, seed, test_acc, failed.
        against: The arm to compare with.
    """
    from workbench.lab import plots

    names = list(dict.fromkeys(screened.arm))
    figure, (left, right) = plots.panels(1, 2, (11, 1.9 + 0.38 * len(names)), sharey=True)
    draw_differences(left, confirmed, against, names)
    left.set(title="accuracy, each at its best rate")
    draw_screening(right, screened, confirmed, names)
    plots.legend_outside(figure, (left, right), columns=6)
    return figure


def draw_differences(ax: "Axes", confirmed: pd.DataFrame, against: str, arms: list[str], mark: str = "failed") -> None:
    """Draw the paired differences of each arm on one line, and their mean with its interval.

    The interval is at 95 %. The margin of equality is shaded.

    Args:
        ax: The panel.
        confirmed: Columns arm, seed, test_acc and `mark`.
        against: The arm to compare with.
        arms: The lines, from the top.
        mark: A column, 0 or 1. A cross marks pairs where it is set for either arm.
    """
    from workbench.lab import plots

    values, marked = by_seed(confirmed), by_seed(confirmed, value=mark)
    for y, arm in enumerate(arms):
        if arm == against or not {arm, against} <= set(values):
            continue
        difference = 100 * (values[arm] - values[against]).dropna()
        lost = (marked.loc[difference.index, [arm, against]] > 0).any(axis=1)
        at = y + np.linspace(-0.22, 0.22, len(difference))
        ax.plot(difference[~lost], at[~lost], "o", ms=3, color="0.65", zorder=2, label="a seed")
        plots.mark_failed(ax, difference[lost], at[lost], f"a seed {mark}")
        mean, look = t_interval(difference), plots.Look(plots.LOOKS[0].color, "s")
        label = "mean, 95 % interval"
        plots.intervals(ax, y, mean.mean, mean.low, mean.high, look, across=True, zorder=3, label=label)
    ax.axvline(0, color="0.3", lw=0.8)
    ax.axvspan(-100 * EQUAL, 100 * EQUAL, color="0.92", lw=0, zorder=0, label="equal within 0.5 points")
    plots.name_axis(ax.yaxis, arms)
    low, high = ax.get_xlim()
    within = max(-100, low), min(100, high)  # with two seeds an interval exceeds the range of accuracies
    ax.set(xlim=within, xlabel=f"test accuracy minus that of “{against}”, points")


def draw_screening(ax: "Axes", screened: pd.DataFrame, confirmed: pd.DataFrame, names: list[str]) -> None:
    """Draw every rate of the screening, one line per arm, with its accuracy as colour and the confirmed rate circled.

    Marks show rates with a failed or collapsed seed.

    Args:
        ax: The panel.
        screened: Columns arm, lr, val_acc, failed, and outcome if it is known.
        confirmed: Columns arm, lr.
        names: The lines, from the top.
    """
    from workbench.lab import plots

    marked = screened.assign(collapsed=collapsed(screened))
    cells = marked.groupby(["arm", "lr"])[["val_acc", "failed", "collapsed"]].mean().reset_index()
    at = cells.arm.map(names.index)
    plots.accuracy_map(ax, cells.lr, at, cells.val_acc, failed=cells.failed, collapsed=cells.collapsed)
    best = confirmed.groupby("arm").lr.first().reindex(names)
    ax.plot(best, range(len(names)), "o", ms=12, mfc="none", mec="0.3", label="rate that was confirmed")
    ax.set(title="screening")
    plots.rate_axis(ax, screened.lr)


def draw_by_line(ax: "Axes", curve: pd.DataFrame, label: str) -> None:
    """Draw the effect of a claim about failures over the failure line.

    Args:
        ax: The panel.
        curve: The curve of a verdict, see `over_lines`.
        label: What the effect is.
    """
    from workbench.lab import plots

    plots.intervals(ax, curve.line, curve.effect, curve.low, curve.high, plots.Look("0.3", "o"), line="-")
    ax.set(
        xlabel="a training failed from this share of ln C", ylabel=label, title="does it depend on the failure line?"
    )
