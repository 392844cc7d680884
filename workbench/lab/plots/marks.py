"""Marks that mean the same in every figure: an estimate, a seed, a training.

An estimate has an interval. A filled glyph is a training that completed, and a hollow one was pruned. A cross diverged,
or failed in any way, and a plus collapsed. No training is dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from workbench.lab.plots.layout import accuracy_axis, rate_axis
from workbench.lab.plots.looks import FAILED, Look
from workbench.outcomes import COLLAPSED

Bounds = Callable[[Sequence[float]], tuple[float, float]]
CROSS = {"marker": "x", "mew": 1.6, "ls": "none", "zorder": 5}
PLUS = CROSS | {"marker": "+"}


def intervals(
    ax: Axes, at: Any, mean: Any, low: Any, high: Any, look: Look, *, across: bool = False, line: str = "none", **more
) -> None:
    """Draw estimates with their bounds.

    Args:
        ax: The panel.
        at: Places along the other axis.
        mean: The estimates.
        low: Their lower bounds. NaN: none.
        high: Their upper bounds. NaN: none.
        look: Colour and glyph.
        across: Whether the estimates are on the x-axis.
        line: The style of a line that joins them.
        more: Arguments of `ax.errorbar`, such as `label`.
    """
    at, mean, low, high = (np.atleast_1d(np.asarray(values, float)) for values in (at, mean, low, high))
    bounds = np.clip(np.nan_to_num([mean - low, high - mean]), 0, None)
    places = (mean, at) if across else (at, mean)
    bars = {"xerr" if across else "yerr": bounds, "capsize": 3, "lw": 1.2}
    glyph = {"color": look.color, "marker": look.marker, "ms": 5, "ls": line}
    ax.errorbar(*places, **bars | glyph | more)


def mark_failed(ax: Axes, x: Any, y: Any, label: str = "a seed failed", color: Any = FAILED) -> None:
    """Mark the points at which a training failed with a cross.

    Without points, the legend has no entry.
    """
    if np.size(x):
        ax.plot(x, y, color=color, ms=8, label=label, **CROSS)


def mark_collapsed(ax: Axes, x: Any, y: Any, label: str = "a seed collapsed", color: Any = FAILED) -> None:
    """Mark the points at which a training collapsed with a plus.

    Without points, the legend has no entry.
    """
    if np.size(x):
        ax.plot(x, y, color=color, ms=9, label=label, **PLUS)


def seeds(
    ax: Axes, place: float, values: pd.Series, failed: pd.Series, estimate: Any, look: Look, label: str,
    *, collapsed: Any = False,
) -> None:  # fmt: skip
    """Draw each seed as a point, and next to them the estimate. Crosses are failed seeds, pluses collapsed ones.

    Args:
        ax: The panel.
        place: On the x-axis.
        values: One value per seed.
        failed: 1 where the training failed.
        estimate: The mean over seeds, with its bounds `low` and `high`.
        look: Colour and glyph.
        label: Label of the points.
        collapsed: Whether a failed training collapsed.
    """
    lost, dead = failed.to_numpy() > 0, pd.Series(collapsed, values.index).to_numpy(bool)
    ax.plot(np.full((~lost).sum(), place), values[~lost], look.marker, color=look.color, alpha=0.6, label=label)
    mark_failed(ax, np.full((lost & ~dead).sum(), place), values[lost & ~dead], color=look.color)
    mark_collapsed(ax, np.full((lost & dead).sum(), place), values[lost & dead], color=look.color)
    mean = Look("black", "_")
    intervals(ax, place + 0.2, estimate.mean, estimate.low, estimate.high, mean, label="mean, 95 % interval")


def trials(
    ax: Axes, x: pd.Series, y: pd.Series, look: Look, label: str, *, failed: Any, pruned: Any = False,
    collapsed: Any = False,
) -> None:  # fmt: skip
    """Draw each training as a point: hollow where it was pruned, a cross where it failed, a plus where it collapsed."""
    pruned, lost, dead = (pd.Series(mark, x.index).astype(bool) for mark in (pruned, failed, collapsed))
    done = ~pruned & ~lost
    points = {"marker": look.marker, "ls": "none", "color": look.color, "ms": 6}
    if done.any():
        ax.plot(x[done], y[done], label=label, **points)
    if (pruned & ~lost).any():
        ax.plot(x[pruned & ~lost], y[pruned & ~lost], **points | {"mfc": "none"}, label=f"{label}, pruned")
    mark_failed(ax, x[lost & ~dead], y[lost & ~dead], f"{label}, failed", look.color)
    mark_collapsed(ax, x[lost & dead], y[lost & dead], f"{label}, collapsed", look.color)


def accuracy_map(
    ax: Axes,
    x: pd.Series,
    y: pd.Series,
    accuracy: pd.Series,
    *,
    failed: Any,
    pruned: Any = False,
    collapsed: Any = False,
) -> None:
    """Draw trainings over two settings, the validation accuracy as colour, with a colour bar.

    Args:
        ax: The panel.
        x: The first setting.
        y: The second setting.
        accuracy: Validation accuracy.
        failed: The share of the seeds that failed. Below 1, a point shows the accuracy. Above 0, a cross marks it.
        pruned: Whether the training was pruned.
        collapsed: The share of the seeds that collapsed. If all failed ones did, a plus replaces the cross.
    """
    pruned, failed = pd.Series(pruned, x.index).astype(bool), pd.Series(failed, x.index).astype(float)
    done = ~pruned & (failed < 1)
    shown = ax.scatter(x[done], y[done], c=accuracy[done], cmap="viridis", s=55, edgecolors="none")
    if pruned.any():
        ax.plot(x[pruned], y[pruned], "v", mfc="none", mec="0.4", ms=6, label="pruned")
    dead = (failed > 0) & (pd.Series(collapsed, x.index).astype(float) >= failed)
    mark_failed(ax, x[(failed > 0) & ~dead], y[(failed > 0) & ~dead], "a training failed")
    mark_collapsed(ax, x[dead], y[dead], "a training collapsed")
    ax.figure.colorbar(shown, ax=ax, label="validation accuracy")


def over_rate(
    ax: Axes,
    rows: pd.DataFrame,
    by: str,
    looks: Mapping[Any, Look],
    names: Mapping | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Draw the mean validation accuracy over the peak learning rate, one line per value.

    Args:
        ax: The panel.
        rows: One row per training. Columns lr, val_acc, failed, `by`, and outcome if it is known.
        by: The column with one line per value.
        looks: The look of each value of `by`.
        names: The label of each value of `by` in the legend. None: the value.
        bounds: The interval (low, high) of the values of several seeds. None: no intervals.
    """
    for value, look in looks.items():
        line = rows[rows[by] == value]
        more = {"err_style": "bars", "err_kws": {"capsize": 3}} if bounds else {}
        sns.lineplot(
            line, x="lr", y="val_acc", color=look.color, marker=look.marker, mec=look.color, ms=5, lw=1.2,
            errorbar=bounds, label=(names or {}).get(value, value), legend=False, ax=ax, **more,
        )  # fmt: skip
    dead = rows.outcome == COLLAPSED if "outcome" in rows else False
    marked = rows.assign(dead=dead, gone=(rows.failed > 0) & ~pd.Series(dead, rows.index))
    cells = marked.groupby([by, "lr"])[["val_acc", "dead", "gone"]].agg(
        {"val_acc": "mean", "dead": "max", "gone": "max"}
    )
    cells = cells.reset_index()[lambda cells: cells[by].isin(list(looks))]
    mark_failed(ax, cells.lr[cells.gone], cells.val_acc[cells.gone])
    mark_collapsed(ax, cells.lr[cells.dead], cells.val_acc[cells.dead])
    rate_axis(ax, rows.lr)
    accuracy_axis(ax, "validation")
