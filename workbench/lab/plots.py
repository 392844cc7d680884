"""Figures: a tidy table in, a matplotlib figure out; none of them trains or saves. Colours are safe for the
colour-blind.

Failed trainings are marked, never dropped.
"""

import matplotlib

matplotlib.rcParams["svg.fonttype"] = "none"

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

ARMS = ["NF+AGC", "NF", "BN", "NF without scaled WS", "GN", "NF+norm clipping", "BN+AGC", "BN recomputed"]
COLOURS = dict(zip(ARMS, sns.color_palette("colorblind", len(ARMS)), strict=True))
CYCLE = sns.color_palette("colorblind", 8)
MARKERS = dict(zip(ARMS, "os^DvPX<", strict=True))


def style() -> None:
    """The look of all figures; the names inside an SVG are not drawn by lot."""
    rc = {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "workbench"}
    sns.set_theme(context="paper", style="ticks", font_scale=1.1, rc=rc)


def graded(n: int) -> list:
    """n colours of a scale from dark to light, for what has an order."""
    return sns.color_palette("viridis", n + 1)[:n]


def shades(color: str, n: int) -> list:
    """n shades of a colour from light to full, for the settings of one arm beside other arms."""
    return sns.light_palette(color, n + 1)[1:]


def arms_of(table: pd.DataFrame) -> list[str]:
    """The known arms that a table has, in their order."""
    return [a for a in ARMS if a in set(table.arm)]


def plain_log_ticks(axis, fine: bool = False) -> None:
    """Marks a logarithmic axis at 1, 2 and 5 times the powers of ten, over a wide range at those alone, or at all
    digits, in plain numbers."""
    low, high = axis.get_view_interval()
    subs = range(1, 10) if fine else (1, 2, 5) if 0 < high < 300 * low else (1,)
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=subs))
    axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())


SIGNALS = {
    "mean_sq": "average squared channel mean",
    "var": "average channel variance",
    "residual_var": "variance of the residual branch",
    "grad_var": "variance of the gradient",
}


def check_figure(table: pd.DataFrame) -> Figure:
    """A pre-flight: the trunk's variance, the branch's and the gradient's over depth, what is expected dashed, faults
    crossed. Columns: block, stage, var, residual_var, grad_var, verdict, and expected ones where there is a theory."""
    style()
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    bad = table[(table.block > 0) & ~table.verdict.isin(["sound", "matches theory", "starts as its shortcut"])]
    for ax, column in zip(axes, ("var", "residual_var", "grad_var"), strict=True):
        shown = table[table[column] > 0]
        ax.plot(shown.block, shown[column], "o", ms=4, color=COLOURS["NF"], label="measured")
        if f"expected_{column}" in table:
            ax.plot(table.block, table[f"expected_{column}"], "--", lw=1, color="0.4", label="theory, of noise")
        ax.plot(bad.block, bad[column], "x", ms=9, color=COLOURS["NF without scaled WS"], label="fault")
        if len(shown):
            depth_axis(ax, table, column)
        ax.set(title=SIGNALS[column], xlabel="residual block (0 = stem)")
    axes[0].legend(frameon=False, fontsize="small")
    return figure


def arms_or_names(table: pd.DataFrame) -> list[str]:
    """The known arms in their order, then others in theirs."""
    return [*arms_of(table), *(arm for arm in dict.fromkeys(table.arm) if arm not in ARMS)]


def look_of(arm: str, i: int) -> dict:
    """Colour and marker of an arm; of one without its own, by its place i."""
    if arm in ARMS:
        return {"color": COLOURS[arm], "fmt": MARKERS[arm]}
    return {"color": sns.color_palette("colorblind", 10)[4 + i % 6], "fmt": "o"}


def over_depth(ax, rows: pd.DataFrame, column: str, label: str, *, color, fmt: str) -> None:
    """Mean over initialisations with their range, and the theory as a dashed line."""
    rows = rows[rows[column].notna()]
    over = rows.groupby("block")[column]
    mean = over.mean()
    spread = [(mean - over.min()).clip(lower=0), (over.max() - mean).clip(lower=0)]
    ax.errorbar(mean.index, mean, yerr=spread, fmt=fmt, ms=4, capsize=2, lw=0.8, color=color, label=label)
    if f"expected_{column}" in rows:
        theory = rows.groupby("block")[f"expected_{column}"].mean()
        ax.plot(theory.index, theory, "--", color=color, lw=1)


def depth_axis(ax, rows: pd.DataFrame, column: str) -> None:
    """Blocks along, stages marked, logarithms up, where the squared mean starts at zero."""
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
    """Signal propagation over depth and training: a heat map each for the trunk's variance, its squared mean over that,
    the branch's variance and the gradient's; logarithms, a cell a block and measured step.

    Columns: step, block, var, mean_sq, residual_var, grad_var. Cells that are not finite or zero stay gray.
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


def curvature_figure(table: pd.DataFrame) -> Figure:
    """The edge of stability, learning rate times sharpness over training beside its limit; and the gradient noise scale
    with its 95 % interval. Columns: step, lr_x_sharpness, limit, sharpness, noise_scale, noise_low, noise_high."""
    style()
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    axes[0].plot(table.step, table.sharpness, "o-", ms=3, color=COLOURS["NF"])
    axes[0].set(title="sharpness", ylabel="largest eigenvalue of the Hessian")
    axes[1].plot(table.step, table.lr_x_sharpness, "o-", ms=3, color=COLOURS["NF"])
    axes[1].axhline(table.limit.iloc[0], color="0.4", ls="--", lw=1, label="limit of gradient descent")
    axes[1].set(title="learning rate x sharpness", ylim=(0, None))
    axes[1].legend(frameon=False, fontsize="small")
    finite = table[np.isfinite(table.noise_scale)]
    top = np.where(np.isfinite(finite.noise_high), finite.noise_high, finite.noise_scale)
    axes[2].fill_between(finite.step, finite.noise_low, top, color=COLOURS["NF"], alpha=0.25, lw=0)
    axes[2].plot(finite.step, finite.noise_scale, "o-", ms=3, color=COLOURS["NF"])
    axes[2].set(title="gradient noise scale", ylabel="images", yscale="log")
    for ax in axes:
        ax.set(xlabel="step")
    return figure


def replay_figure(steps: pd.DataFrame, ratios: pd.DataFrame, first: dict[str, tuple[str, int]]) -> Figure:
    """A replay: the losses, and for each run a heat map of the largest gradient-to-weight ratio, parameters over steps.

    Columns: run (original, fork), step, loss; run, step, parameter, ratio; what is not finite (NaN) is black. `first`
    has (parameter, step) of the first to go, which is framed from there on.
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
    colours = dict(zip(names, (COLOURS["NF"], COLOURS["NF+AGC"]), strict=False))
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
            frame = plt.Rectangle(at, cells.shape[1] - at[0], 1, fill=False, ec="#d55e00", lw=2, clip_on=False)
            ax.add_patch(frame)
        if ax is not axes[1]:
            ax.set_yticks([])
        ax.tick_params(axis="y", labelsize="x-small", length=0)
        ax.tick_params(axis="x", rotation=0)
        ax.set(title=name + (f"\nfirst to go: {first[name][0]}" if name in first else ""), xlabel="step", ylabel="")
    label = "log10 of the largest gradient-to-weight ratio"
    figure.colorbar(axes[-1].collections[0], ax=list(axes[1:]), label=label, fraction=0.03, aspect=40)
    return figure
