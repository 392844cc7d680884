"""Panels, axes and legends that figures share."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator, PercentFormatter

from workbench.lab.plots.looks import style

MOST_TICKS = 7  # on an axis that is marked at given values


def panels(rows: int, columns: int, size: tuple[float, float], **more) -> tuple[Figure, np.ndarray]:
    """Make a figure with these panels.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        size: Width and height, inches.
        more: Arguments of `plt.subplots`, such as `sharey` and `width_ratios`.

    Returns:
        The figure and all panels in one list, row by row.
    """
    style()
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **more)
    return figure, axes.ravel()


def stacked(heights: list[float], width: float) -> tuple[Figure, np.ndarray]:
    """Make a figure of parts, one below the other. Each part has its own panels and legend.

    Args:
        heights: Heights of the parts, inches.
        width: Width of the figure, inches.
    """
    style()
    figure = plt.figure(figsize=(width, sum(heights)), layout="constrained")
    return figure, figure.subfigures(len(heights), 1, height_ratios=heights)


def log_axis(axis: Axis, label: str, values: Iterable[float] = ()) -> None:
    """Make an axis logarithmic with plain numbers.

    Args:
        axis: `ax.xaxis` or `ax.yaxis`.
        label: What it shows, with the unit.
        values: Where to mark it. Of many values, every second or third is marked. Without values, the marks are 1, 2
            and 5 times the powers of ten.
    """
    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}label": label})
    marked = sorted(set(values))
    if not marked:
        plain_log_ticks(axis)
        return
    marked = marked[:: -(-len(marked) // MOST_TICKS)]
    axis.set_ticks(marked, [f"{value:.3g}" for value in marked])
    axis.set_minor_locator(NullLocator())


def rate_axis(ax: Axes, rates: Iterable[float] = ()) -> None:
    """Make the x-axis one of peak learning rates, marked at the rates tried."""
    log_axis(ax.xaxis, "peak learning rate", rates)


def accuracy_axis(ax: Axes, split: str) -> None:
    """Make the y-axis one of accuracies of this split, in percent."""
    ax.set_ylabel(f"{split} accuracy")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))


def name_axis(axis: Axis, names: list[str]) -> None:
    """Mark an axis with names at 0, 1, 2, ... Those of a y-axis start at the top."""
    axis.set_ticks(range(len(names)), names)
    ends = (-0.5, len(names) - 0.5)
    axis.axes.set(**{f"{axis.axis_name}lim": ends if axis.axis_name == "x" else ends[::-1]})


class _LogLocator(LogLocator):
    """Marks of a logarithmic axis. A panel without positive values has none, where matplotlib raises an error."""

    def __call__(self):
        return super().__call__() if np.isfinite(self.axis.get_minpos()) else []


def plain_log_ticks(axis: Axis, fine: bool = False) -> None:
    """Mark a logarithmic axis with plain numbers.

    The marks are 1, 2 and 5 times the powers of ten. Over a wide range, only the powers are marked. With `fine`, all
    digits are marked.
    """
    low, high = axis.get_view_interval()
    subs = range(1, 10) if fine else (1, 2, 5) if 0 < high < 300 * low else (1,)
    axis.set_major_locator(_LogLocator(subs=subs))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_locator(NullLocator())


def legend_outside(
    figure: FigureBase, axes: Iterable[Axes] | None = None, *, columns: int = 5, title: str = ""
) -> None:
    """Put one legend below the panels, with each label once.

    Args:
        figure: The figure, or a part of it.
        axes: The panels with the labels. None: all panels.
        columns: The largest number of labels in a row.
        title: Title of the legend.
    """
    handles: dict = {}
    for ax in figure.axes if axes is None else axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        look = {
            "frameon": False,
            "fontsize": "small",
            "loc": "outside lower center",
            "ncols": min(columns, len(handles)),
        }
        figure.legend(handles.values(), handles, title=title or None, **look)
