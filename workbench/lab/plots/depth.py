"""Signal over depth: networks before their first step, and over training."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from workbench.lab.plots.layout import legend_outside, panels, plain_log_ticks
from workbench.lab.plots.looks import ARM_LOOKS, FAILED, Look, style
from workbench.lab.plots.marks import intervals

SIGNALS = {
    "mean_sq": "average squared channel mean",
    "var": "average channel variance",
    "residual_var": "variance of the residual branch",
    "grad_var": "variance of the gradient",
}


def check_figure(table: pd.DataFrame) -> Figure:
    """Draw the pre-flight check of one network over depth.

    The panels have the variances of the trunk, the branch and the gradient. Dashed lines are the expected values.
    Crosses mark faults.

    Args:
        table: Columns block, stage, var, residual_var, grad_var, verdict, and the expected values if there is a theory.
    """
    figure, axes = panels(1, 3, (12, 3.6))
    bad = table[(table.block > 0) & ~table.verdict.isin(["sound", "matches theory", "starts as its shortcut"])]
    for ax, column in zip(axes, ("var", "residual_var", "grad_var"), strict=True):
        shown = table[table[column] > 0]
        ax.plot(shown.block, shown[column], "o", ms=4, color=ARM_LOOKS["NF"].color, label="measured")
        if f"expected_{column}" in table:
            ax.plot(table.block, table[f"expected_{column}"], "--", lw=1, color="0.4", label="theory, of noise")
        ax.plot(bad.block, bad[column], "x", ms=9, color=FAILED, label="fault")
        if len(shown):
            depth_axis(ax, table, column)
        layers = table.attrs.get("unit") == "layer"
        ax.set(title=SIGNALS[column], xlabel="layer (0 = input)" if layers else "residual block (0 = stem)")
    legend_outside(figure, axes)
    return figure


def over_depth(ax, rows: pd.DataFrame, column: str, label: str, look: Look) -> None:
    """Draw the mean over initialisations with their range, and the theory as a dashed line."""
    rows = rows[rows[column].notna()]
    over = rows.groupby("block")[column]
    mean = over.mean()
    intervals(ax, mean.index, mean, over.min(), over.max(), look, ms=4, capsize=2, label=label)
    if f"expected_{column}" in rows:
        theory = rows.groupby("block")[f"expected_{column}"].mean()
        ax.plot(theory.index, theory, "--", color=look.color, lw=1)


def depth_axis(ax, rows: pd.DataFrame, column: str) -> None:
    """Set up the axes: blocks on x with their stages marked, and a logarithmic y-axis.

    The squared mean starts at zero.
    """
    for first in rows[rows.block > 0].groupby("stage").block.min().iloc[1:]:
        ax.axvline(first - 0.5, color="0.85", lw=0.8, zorder=0)
    ax.set(xlabel="residual block (0 = stem)")
    if column == "mean_sq":
        ax.set_yscale("symlog", linthresh=0.01)
        ax.set_ylim(bottom=0)
    else:
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        if high / low < 1e3:
            plain_log_ticks(ax.yaxis, fine=high / low < 4)
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))


def signal_over_time_figure(table: pd.DataFrame) -> Figure:
    """Draw signal propagation over depth and training as heat maps, one cell per block and step.

    The four maps are logarithms of the trunk's variance, its squared mean over its variance, the branch's variance, and
    the gradient's variance.

    Args:
        table: Columns step, block, var, mean_sq, residual_var, grad_var. Values that are zero or not finite stay gray.
    """
    style()
    shown = table.assign(shift=table.mean_sq / table["var"])
    titles = {
        "var": "variance of the trunk",
        "shift": "squared mean over variance",
        "residual_var": "variance of the branch",
        "grad_var": "variance of the gradient",
    }
    figure, axes = plt.subplots(1, 4, figsize=(16, 1.6 + 0.16 * table.block.nunique() + 1.2), layout="constrained")
    for ax, (column, title) in zip(axes, titles.items(), strict=True):
        cells = shown.pivot_table(index="block", columns="step", values=column, dropna=False)
        logs = np.log10(cells.where(np.isfinite(cells) & (cells > 0)))
        ax.set_facecolor("0.85")
        sns.heatmap(logs, ax=ax, cmap="viridis", cbar_kws={"label": "log10"}, rasterized=True)
        ax.invert_yaxis()
        ax.set(title=title, xlabel="step", ylabel="residual block (0 = stem)" if column == "var" else "")
    return figure
