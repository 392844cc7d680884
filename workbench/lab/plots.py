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
    """The look of all figures."""
    sns.set_theme(
        context="paper", style="ticks", font_scale=1.1, rc={"axes.spines.top": False, "axes.spines.right": False}
    )


def graded(n: int) -> list:
    """n colours of a scale from dark to light, for what has an order."""
    return sns.color_palette("viridis", n + 1)[:n]


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


def signal_figure(table: pd.DataFrame) -> Figure:
    """Signal propagation on noise: the statistics over depth, forward and backward; points with the range over
    initialisations, dashed lines the theory."""
    style()
    figure, axes = plt.subplots(1, 4, figsize=(15.5, 3.8), layout="constrained")
    shown = table[table.input == "noise"]
    for ax, (column, title) in zip(axes, SIGNALS.items(), strict=True):
        for i, arm in enumerate(arms_or_names(shown)):
            look = look_of(arm, i)
            _over_depth(ax, shown[shown.arm == arm], column, arm, **look)
        _depth_axis(ax, shown, column)
        ax.set(title=title)
    if shown.expected_var.notna().any():
        axes[0].plot([], [], "--", color="0.4", lw=1, label="theory")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=4, loc="outside lower center")
    return figure


def effects_figure(table: pd.DataFrame) -> Figure:
    """What moves signal propagation: a column a factor, the trunk's variance above, the gradient's below; a line a
    value, dashed the theory. Arms are named "factor = value"."""
    style()
    factors = list(dict.fromkeys(arm.partition(" = ")[0] for arm in table.arm))
    width = 1 + 2.6 * len(factors)
    figure, axes = plt.subplots(2, len(factors), figsize=(width, 5.8), layout="constrained", squeeze=False)
    for (top, bottom), factor in zip(axes.T, factors, strict=True):
        arms = [arm for arm in dict.fromkeys(table.arm) if arm.partition(" = ")[0] == factor]
        colours = sns.color_palette("viridis", len(arms) + 1)
        for arm, colour in zip(arms, colours, strict=False):
            rows = table[table.arm == arm]
            label = arm.partition(" = ")[2]
            for ax, column in ((top, "var"), (bottom, "grad_var")):
                _over_depth(ax, rows, column, label, color=colour, fmt=".")
        for ax, column in ((top, "var"), (bottom, "grad_var")):
            _depth_axis(ax, table[table.arm.isin(arms)], column)
        top.set(title=factor.replace("_", " "), xlabel="")
        top.legend(frameon=False, fontsize="x-small", ncols=2)
    axes[0, 0].set_ylabel("variance of the trunk")
    axes[1, 0].set_ylabel("variance of the gradient")
    return figure


def inputs_figure(table: pd.DataFrame) -> Figure:
    """Noise and images: a column an arm, the trunk's variance on each input, dashed what is expected of it."""
    style()
    arms = arms_or_names(table)
    figure, axes = plt.subplots(
        1, len(arms), figsize=(1 + 3.4 * len(arms), 3.4), layout="constrained", sharey=True, squeeze=False
    )
    colours = dict(zip(("noise", "images"), sns.color_palette("colorblind", 8)[5:8:2], strict=True))
    for ax, arm in zip(axes[0], arms, strict=True):
        rows = table[table.arm == arm]
        for name, colour in colours.items():
            _over_depth(ax, rows[rows.input == name], "var", name, color=colour, fmt="o" if name == "noise" else "s")
        _depth_axis(ax, rows, "var")
        ax.set(title=arm)
    axes[0, 0].set_ylabel("variance of the trunk")
    axes[0, 0].plot([], [], "--", color="0.4", lw=1, label="expected of that input")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, ncols=3, loc="outside lower center")
    return figure


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
            _depth_axis(ax, table, column)
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


def _over_depth(ax, rows: pd.DataFrame, column: str, label: str, *, color, fmt: str) -> None:
    """Mean over initialisations with their range, and the theory as a dashed line."""
    rows = rows[rows[column].notna()]
    over = rows.groupby("block")[column]
    mean = over.mean()
    spread = [(mean - over.min()).clip(lower=0), (over.max() - mean).clip(lower=0)]
    ax.errorbar(mean.index, mean, yerr=spread, fmt=fmt, ms=4, capsize=2, lw=0.8, color=color, label=label)
    if f"expected_{column}" in rows:
        theory = rows.groupby("block")[f"expected_{column}"].mean()
        ax.plot(theory.index, theory, "--", color=color, lw=1)


def _depth_axis(ax, rows: pd.DataFrame, column: str) -> None:
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


def search_figure(trials: pd.DataFrame, confirmed: pd.DataFrame, importance: dict[str, float]) -> Figure:
    """The search: where it looked and how that went, slices over threshold and rate, importance, and the confirmation
    on fresh seeds."""
    style()
    figure, axes = plt.subplots(1, 5, figsize=(17, 3.8), layout="constrained", width_ratios=[1.3, 1, 1, 0.7, 0.7])
    agc = trials[trials.arm == "NF+AGC"]
    done, pruned, diverged = (agc[agc.outcome == o] for o in ("complete", "pruned", "diverged"))

    ax = axes[0]
    points = ax.scatter(
        done.lr, done["clip"], c=done.val_acc, cmap="viridis", s=45, label="complete", edgecolors="none"
    )
    ax.scatter(pruned.lr, pruned["clip"], marker="v", s=40, facecolors="none", edgecolors="0.4", label="pruned")
    ax.scatter(diverged.lr, diverged["clip"], marker="x", s=45, color="#d55e00", label="diverged")
    ax.set(
        xscale="log", yscale="log", xlabel="peak learning rate", ylabel="clipping threshold", title="trials with AGC"
    )
    for axis in (ax.xaxis, ax.yaxis):
        plain_log_ticks(axis)
    figure.colorbar(points, ax=ax, label="validation accuracy")
    ax.legend(frameon=False, fontsize="small", loc="best")

    _slice(axes[1], agc, "clip", "NF+AGC")
    plain = trials[(trials.arm == "NF") & (trials.outcome == "complete")]
    if not plain.empty:
        axes[1].axhline(plain.val_acc.max(), color=COLOURS["NF"], ls="--", lw=1, label="best without clipping")
    axes[1].set(xlabel="clipping threshold", ylabel="validation accuracy", title="slice: threshold")
    axes[1].legend(frameon=False, fontsize="small")
    for arm in arms_of(trials):
        _slice(axes[2], trials[trials.arm == arm], "lr", arm)
    axes[2].set(xlabel="peak learning rate", title="slice: rate")
    axes[2].sharey(axes[1])
    axes[2].legend(frameon=False, fontsize="small")

    ax = axes[3]
    names = {"clip": "threshold", "base_lr": "learning\nrate"}
    ax.barh([names.get(k, k) for k in importance], list(importance.values()), color="0.5", height=0.5)
    ax.set(xlim=(0, 1), xlabel="importance (PED-ANOVA)", title="what mattered")
    if not importance:
        ax.text(0.5, 0.5, "too few trials", ha="center", transform=ax.transAxes, color="0.4")
        ax.set_yticks([])

    ax = axes[4]
    _seeds(ax, confirmed)
    ax.set(title="fresh seeds")
    return figure


def _slice(ax, trials: pd.DataFrame, column: str, arm: str) -> None:
    """Accuracy over one parameter, whatever the others were; pruned and diverged trials are marked."""
    marks = {"complete": {"s": 30}, "pruned": {"marker": "v", "s": 30}, "diverged": {"marker": "x", "s": 35}}
    for outcome, mark in marks.items():
        rows = trials[trials.outcome == outcome]
        hollow = {"facecolors": "none", "edgecolors": COLOURS[arm]} if outcome == "pruned" else {"color": COLOURS[arm]}
        if len(rows):
            ax.scatter(rows[column], rows.val_acc, label=f"{arm}, {outcome}", **mark, **hollow)
    ax.set_xscale("log")
    plain_log_ticks(ax.xaxis)
    ax.tick_params(axis="x", rotation=45)


def _seeds(ax, rows: pd.DataFrame) -> None:
    """Each seed as a point, failures as crosses, the mean with its 95 % t-interval beside them."""
    from workbench.lab.stats import t_interval

    for i, arm in enumerate(arms_of(rows)):
        t = rows[rows.arm == arm]
        ok, failed = t[t.failed == 0], t[t.failed == 1]
        ax.plot(np.full(len(ok), i), ok.val_acc, MARKERS[arm], color=COLOURS[arm], alpha=0.6)
        ax.plot(np.full(len(failed), i), failed.val_acc, "x", color=COLOURS[arm])
        interval = t_interval(t.val_acc)
        if not np.isnan(interval.low):
            ax.errorbar(
                i + 0.2,
                interval.mean,
                [[interval.mean - interval.low], [interval.high - interval.mean]],
                fmt="_",
                color="black",
                capsize=3,
            )
    ax.set_xticks(range(len(arms_of(rows))), arms_of(rows))
    ax.set(xlim=(-0.5, len(arms_of(rows)) - 0.3), ylabel="validation accuracy")


def batch_figure(table: pd.DataFrame) -> Figure:
    """Accuracy and failure over the peak learning rate, one column a batch size; mean and 95 % t-interval over
    seeds."""
    from workbench.lab.stats import share_interval, t_interval

    style()
    sizes = sorted(table.batch_size.unique())
    figure, axes = plt.subplots(
        2,
        len(sizes),
        figsize=(1.5 + 3.6 * len(sizes), 5.6),
        layout="constrained",
        sharex=True,
        sharey="row",
        squeeze=False,
        height_ratios=[2, 1],
    )
    for column, size in enumerate(sizes):
        top, bottom = axes[:, column]
        arms = arms_of(table)
        for offset, arm in zip(0.03 * (np.arange(len(arms)) - (len(arms) - 1) / 2), arms, strict=True):
            rows = table[(table.batch_size == size) & (table.arm == arm)]
            over = rows.groupby("lr")
            x = np.array(sorted(rows.lr.unique())) * 10**offset
            intervals = [t_interval(t.val_acc) for _, t in over]
            mean = np.array([i.mean for i in intervals])
            half = np.nan_to_num([i.high - i.mean for i in intervals])
            top.errorbar(x, mean, half, marker=MARKERS[arm], color=COLOURS[arm], capsize=3, lw=1.2, label=arm)
            lost = np.array([t.failed.any() for _, t in over])
            top.plot(x[lost], mean[lost], "x", color="black", ms=10, zorder=5)
            shares = [share_interval(int(t.failed.sum()), len(t)) for _, t in over]
            share = np.array([s.mean for s in shares])
            bounds = [share - [s.low for s in shares], [s.high for s in shares] - share]
            bottom.errorbar(
                x, share, np.clip(bounds, 0, None), marker=MARKERS[arm], color=COLOURS[arm], capsize=2, lw=1, ls=":"
            )
        top.set(xscale="log", title=f"batch {size}")
        bottom.set(xlabel="peak learning rate", ylim=(-0.05, 1.05))
        bottom.set_xticks(sorted(table.lr.unique()), [f"{v:.3g}" for v in sorted(table.lr.unique())])
        bottom.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes[0, 0].set_ylabel("validation accuracy")
    axes[0, 0].set_ylim(0, min(1.0, axes[0, 0].get_ylim()[1]))
    axes[1, 0].set_ylabel("share failed")
    axes[0, 0].plot([], [], "x", color="black", ms=8, ls="none", label="a seed failed")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, ncols=4, loc="outside lower center")
    return figure
