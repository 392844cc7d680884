"""One figure for arms that screening tuned and fresh seeds confirmed: what each is worth, and which rates it stands."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.lab.statistics.effects import EQUAL
from workbench.lab.statistics.intervals import t_interval
from workbench.lab.statistics.rates import by_seed


def effects_and_rates(screened: pd.DataFrame, confirmed: pd.DataFrame, against: str) -> Figure:
    """Left: paired differences of test accuracy to the arm `against`. Right: every rate of the screening, its
    accuracy as colour, crossed where a seed failed.

    Columns: `screened` arm, lr, seed, val_acc, failed; `confirmed` arm, lr, seed, test_acc, failed.
    """
    import matplotlib.pyplot as plt

    from workbench.lab import plots

    plots.style()
    names = list(dict.fromkeys(screened.arm))
    height = 1.9 + 0.38 * len(names)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, height), sharey=True, layout="constrained")
    draw_differences(left, confirmed, against, names)
    left.set(title="accuracy, each at its best rate")

    cells = screened.groupby(["arm", "lr"]).agg(failed=("failed", "max"), val_acc=("val_acc", "mean")).reset_index()
    cells["y"] = cells.arm.map(names.index)
    alive, lost = cells[cells.failed == 0], cells[cells.failed == 1]
    shown = right.scatter(alive.lr, alive.y, c=100 * alive.val_acc, cmap="viridis", s=60, edgecolors="none")
    right.scatter(lost.lr, lost.y, marker="x", s=45, color="#d55e00", label="a screening seed failed")
    for y, best in enumerate(confirmed.groupby("arm").lr.first().reindex(names)):
        right.plot(best, y, "o", ms=12, mfc="none", mec="0.3", label="rate that was confirmed" if y == 0 else None)
    right.set(xscale="log", xlabel="peak learning rate", title="screening")
    right.set_xticks(sorted(screened.lr.unique()), [f"{lr:g}" for lr in sorted(screened.lr.unique())])
    right.xaxis.set_minor_locator(plt.NullLocator())
    figure.colorbar(shown, ax=right, label="validation accuracy, %")
    handles = [h + g for h, g in zip(*(ax.get_legend_handles_labels() for ax in (left, right)), strict=True)]
    figure.legend(*handles, frameon=False, ncols=6, loc="outside lower center", fontsize="small")
    return figure


def draw_differences(ax, confirmed: pd.DataFrame, against: str, arms: list[str], mark: str = "failed") -> None:
    """Each arm a line from the top: the paired differences of its seeds, crossed where a training of the pair has
    `mark` (0 or 1) set, and their mean with its 95 % interval; the margin of equality is shaded."""
    from workbench.lab import plots

    values, marked = by_seed(confirmed), by_seed(confirmed, value=mark)
    for y, arm in enumerate(arms):
        if arm == against or arm not in values:
            continue
        difference = 100 * (values[arm] - values[against]).dropna()
        lost = (marked.loc[difference.index, [arm, against]] > 0).any(axis=1)
        at = y + np.linspace(-0.22, 0.22, len(difference))
        ax.plot(difference[~lost], at[~lost], "o", ms=3, color="0.65", zorder=2)
        ax.plot(difference[lost], at[lost], "x", ms=6, color="#d55e00", zorder=2)
        mean = t_interval(difference)
        bounds = np.nan_to_num([[mean.mean - mean.low], [mean.high - mean.mean]])
        ax.errorbar(mean.mean, y, xerr=bounds, fmt="s", ms=5, capsize=3, lw=1.4, color=plots.CYCLE[0], zorder=3)
    ax.axvline(0, color="0.3", lw=0.8)
    ax.axvspan(-100 * EQUAL, 100 * EQUAL, color="0.92", lw=0, zorder=0, label="equal within 0.5 points")
    ax.plot([], [], "o", ms=3, color="0.65", label="a seed")
    ax.plot([], [], "x", ms=6, color="#d55e00", label=f"a seed {mark}")
    ax.errorbar([], [], xerr=[], fmt="s", ms=5, capsize=3, color=plots.CYCLE[0], label="mean, 95 % interval")
    ax.set_yticks(range(len(arms)), arms)
    low, high = ax.get_xlim()
    within = max(-100, low), min(100, high)  # of two seeds an interval goes beyond all accuracies
    ax.set(ylim=(len(arms) - 0.5, -0.5), xlim=within, xlabel=f"test accuracy minus that of “{against}”, points")
