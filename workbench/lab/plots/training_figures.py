"""Figures of one training: its curvature, and its last steps in a replay."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from workbench.lab.plots.layout import panels, plain_log_ticks
from workbench.lab.plots.looks import ARM_LOOKS, FAILED, style


def curvature_figure(table: pd.DataFrame) -> Figure:
    """Draw the sharpness, the edge of stability, and the gradient noise scale over training.

    The edge of stability is learning rate times sharpness, compared with its limit. The noise scale has its 95 %
    interval.

    Args:
        table: Columns step, lr_x_sharpness, limit, sharpness, noise_scale, noise_low, noise_high.
    """
    figure, axes = panels(1, 3, (12, 3.6))
    axes[0].plot(table.step, table.sharpness, "o-", ms=3, color=ARM_LOOKS["NF"].color)
    axes[0].set(title="sharpness", ylabel="largest eigenvalue of the Hessian")
    axes[1].plot(table.step, table.lr_x_sharpness, "o-", ms=3, color=ARM_LOOKS["NF"].color)
    axes[1].axhline(table.limit.iloc[0], color="0.4", ls="--", lw=1, label="limit of gradient descent")
    axes[1].set(title="learning rate x sharpness", ylim=(0, None))
    axes[1].legend(frameon=False, fontsize="small")
    finite = table[np.isfinite(table.noise_scale)]
    top = np.where(np.isfinite(finite.noise_high), finite.noise_high, finite.noise_scale)
    axes[2].fill_between(finite.step, finite.noise_low, top, color=ARM_LOOKS["NF"].color, alpha=0.25, lw=0)
    axes[2].plot(finite.step, finite.noise_scale, "o-", ms=3, color=ARM_LOOKS["NF"].color)
    axes[2].set(title="gradient noise scale", ylabel="images", yscale="log")
    for ax in axes:
        ax.set(xlabel="step")
    return figure


def replay_figure(steps: pd.DataFrame, ratios: pd.DataFrame, first: dict[str, tuple[str, int]]) -> Figure:
    """Draw a replay: the losses, and for each run the largest gradient-to-weight ratios.

    The ratios are a heat map, parameters over steps. Values that are not finite (NaN) are black.

    Args:
        steps: Columns run (original, fork), step, loss.
        ratios: Columns run, step, parameter, ratio.
        first: By run the first parameter whose ratio rises, and its step. A frame marks it from that step on.
    """
    style()
    names = list(dict.fromkeys(steps.run))
    parameters = list(dict.fromkeys(ratios.parameter))
    counts = [max(8, steps.run.eq(name).sum()) for name in names]
    figure, axes = plt.subplots(
        1,
        1 + len(names),
        figsize=(7 + 0.14 * sum(counts), max(3.8, 1.6 + 0.14 * min(len(parameters), 70))),
        width_ratios=[28, *counts],
        layout="constrained",
    )
    colours = dict(zip(names, (ARM_LOOKS["NF"].color, ARM_LOOKS["NF+AGC"].color), strict=False))
    for name, look in zip(names, ("o-", "s--"), strict=False):
        rows = steps[steps.run == name]
        axes[0].plot(rows.step, rows.loss, look, ms=3, lw=1.2, color=colours[name], label=name)
        for step in rows.step[rows.loss.isna()]:
            axes[0].axvline(step, color=colours[name], lw=1, ls=":", label=f"{name}: not finite")
        if name in first:
            axes[0].axvline(first[name][1], color=colours[name], lw=0.8, alpha=0.6, label="first layer to go")
    axes[0].set(yscale="log", xlabel="step", ylabel="training loss", title="loss of each step")
    axes[0].xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes[0].legend(frameon=False, fontsize="small")
    low, high = axes[0].get_ylim()
    if high / low < 1e3:
        plain_log_ticks(axes[0].yaxis, fine=high / low < 4)

    logs = np.log10(ratios.ratio.clip(lower=1e-9))
    limits = {"vmin": logs.quantile(0.02), "vmax": logs.max()}
    for ax, name in zip(axes[1:], names, strict=True):
        cells = ratios.assign(log=logs)[ratios.run == name].pivot(index="parameter", columns="step", values="log")
        cells = cells.loc[parameters]
        ax.set_facecolor("black")
        ticks = {"xticklabels": max(1, cells.shape[1] // 6), "yticklabels": -(-len(parameters) // 70)}
        sns.heatmap(cells, ax=ax, cmap="viridis", **limits, **ticks, cbar=False, rasterized=True)
        if name in first:
            parameter, step = first[name]
            at = cells.columns.get_loc(step), parameters.index(parameter)
            frame = plt.Rectangle(at, cells.shape[1] - at[0], 1, fill=False, ec=FAILED, lw=2, clip_on=False)
            ax.add_patch(frame)
        if ax is not axes[1]:
            ax.set_yticks([])
        ax.tick_params(axis="y", labelsize="x-small", length=0)
        ax.tick_params(axis="x", rotation=0)
        ax.set(title=name + (f"\nfirst to go: {first[name][0]}" if name in first else ""), xlabel="step", ylabel="")
    label = "log10 of the largest gradient-to-weight ratio"
    figure.colorbar(axes[-1].collections[0], ax=list(axes[1:]), label=label, fraction=0.03, aspect=40)
    return figure
