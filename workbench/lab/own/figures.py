"""Figures of notebooks/own_network.ipynb: the images, and the search with its confirmation."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from workbench.data import Dataset
from workbench.lab.plots import COLOURS, MARKERS, style
from workbench.lab.stats import t_interval

CLASSES, EACH = 10, 3  # shown of the images
FAILED = "#d55e00"
NAMES = {"NF+AGC": "without BatchNorm, AGC", "BN": "with BatchNorm"}


def examples_figure(data: Dataset) -> Figure:
    """The first training images of the first classes, a column a class, before they are normalised."""
    shown = min(CLASSES, len(data.classes))
    figure, axes = plt.subplots(
        EACH, shown, figsize=(1.1 * shown + 0.3, 1.1 * EACH + 0.4), layout="constrained", squeeze=False
    )
    for column in range(shown):
        images = data.train.images[data.train.labels == column][:EACH]
        for ax in axes[:, column]:
            ax.set_axis_off()
        for ax, image in zip(axes[:, column], images, strict=False):
            ax.imshow(image.permute(1, 2, 0).squeeze(2), cmap="gray", vmin=0, vmax=255)
        axes[0, column].set_title(data.classes[column][:12], fontsize="small")
    return figure


def own_figure(trials: pd.DataFrame, confirmed: pd.DataFrame) -> Figure:
    """Where the search looked, what each rate gave, and the best of both on fresh seeds with 95 % t-intervals; failed
    trainings are crosses, pruned ones hollow.

    Columns as of `own_verdict`.
    """
    style()
    figure, (where, rates, seeds) = plt.subplots(
        1, 3, figsize=(12, 3.8), layout="constrained", width_ratios=[1.25, 1, 0.8]
    )
    agc = trials[trials.arm == "NF+AGC"]
    good = agc[agc.failed == 0]
    points = where.scatter(good.lr, good["clip"], c=good.val_acc, cmap="viridis", s=55)
    bad = agc[agc.failed != 0]
    where.scatter(bad.lr, bad["clip"], marker="x", color=FAILED, s=45, label="failed")
    where.set(xscale="log", yscale="log", xlabel="peak learning rate", ylabel="clipping threshold", title="trials")
    for axis in (where.xaxis, where.yaxis):
        _plain(axis)
    figure.colorbar(points, ax=where, label="validation accuracy")
    if len(bad):
        where.legend(frameon=False, fontsize="small")

    for arm in _arms(trials):
        _over_rate(rates, trials[trials.arm == arm], arm)
    rates.set(xscale="log", xlabel="peak learning rate", ylabel="validation accuracy", title="each at its rates")
    _plain(rates.xaxis)
    rates.legend(frameon=False, fontsize="small")

    for i, arm in enumerate(_arms(confirmed)):
        _over_seeds(seeds, i, confirmed[confirmed.arm == arm], arm)
    short = [NAMES[arm].partition(",")[0].replace(" ", "\n") for arm in _arms(confirmed)]
    seeds.set_xticks(range(len(short)), short)
    seeds.set(xlim=(-0.5, len(_arms(confirmed)) - 0.2), ylabel="test accuracy", title="best of each, fresh seeds")
    return figure


def _arms(table: pd.DataFrame) -> list[str]:
    return [arm for arm in NAMES if arm in set(table.arm)] if len(table) else []


def _over_rate(ax: Axes, rows: pd.DataFrame, arm: str) -> None:
    look = {"color": COLOURS[arm], "marker": MARKERS[arm], "ls": "none"}
    pruned, failed = rows.state == "PRUNED", rows.failed != 0
    sound = rows[~pruned & ~failed]
    ax.plot(sound.lr, sound.val_acc, label=NAMES[arm], **look)
    ax.plot(rows[pruned & ~failed].lr, rows[pruned & ~failed].val_acc, mfc="none", **look)
    ax.plot(rows[failed].lr, rows[failed].val_acc, **{**look, "marker": "x"})


def _over_seeds(ax: Axes, i: int, rows: pd.DataFrame, arm: str) -> None:
    for failed, marker in ((0, MARKERS[arm]), (1, "x")):
        chosen = rows[rows.failed == failed].test_acc
        ax.plot(np.full(len(chosen), i), chosen, marker, color=COLOURS[arm], alpha=0.7)
    interval = t_interval(rows.test_acc)
    if not np.isnan(interval.low):
        half = [[interval.mean - interval.low], [interval.high - interval.mean]]
        ax.errorbar(i + 0.15, interval.mean, half, fmt="_", color="black", capsize=3)


def _plain(axis) -> None:
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_locator(NullLocator())
