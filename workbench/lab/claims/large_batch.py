"""Claim 2: without clipping normalizer-free networks fail as batch and rate grow; with AGC they hold.

Source: NFNet paper, section 4.1, figure 2. Table: one row a training, with arm (BN, NF, NF+AGC and other opponents),
batch_size, lr, seed, val_acc, failed, outcome. The contrast: where exactly one of NF and NF+AGC fails, at the same
batch, rate and seed, it is the one without clipping.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.lab.stats import accuracy_interval, best_four_of_five, share_interval, share_p, t_interval
from workbench.lab.verdicts import Verdict


def verdict(table: pd.DataFrame) -> Verdict:
    """Where exactly one of NF and NF with AGC fails (same batch, rate and seed), is it the one without?

    Columns: arm (BN, NF, NF+AGC), batch_size, lr, seed, val_acc, failed, outcome.
    """
    cell = ["batch_size", "lr", "seed"]
    failed = table.pivot_table(index=cell, columns="arm", values="failed")[["NF", "NF+AGC"]].dropna()
    only_plain = int(((failed["NF"] == 1) & (failed["NF+AGC"] == 0)).sum())
    only_agc = int(((failed["NF"] == 0) & (failed["NF+AGC"] == 1)).sum())
    share = share_interval(only_plain, only_plain + only_agc)
    holds = None if share.n == 0 else True if share.low > 0.5 else False if share.high < 0.5 else None
    counts = ", ".join(f"{arm} {int(t.failed.sum())} of {len(t)}" for arm, t in table.groupby("arm"))
    best = "; ".join(_best_of_batch(batch, rows) for batch, rows in table.groupby("batch_size"))
    sentence = (
        f"Failed trainings: {counts}. In {only_plain} of the {share.n} cells where exactly one of the two fails, it is "
        f"NF without clipping. Best peak rate by mean validation accuracy: {best}."
    )
    if scaled := _linearly_scaled(table):
        sentence += f" By the paper's protocol, rates scaled with the batch and the worst seed left out: {scaled}."
    p = share_p(only_plain, share.n)
    return Verdict(sentence, holds, "share of discordant cells in which only the unclipped net fails", share, p=p)


def _linearly_scaled(table: pd.DataFrame) -> str:
    """By the paper's protocol: each arm's best rate at the smallest batch, scaled linearly, and the mean accuracy
    without the worst seed; where the scaled rates are on the grid."""
    smallest, largest = table.batch_size.min(), table.batch_size.max()
    parts = []
    for arm, rows in table.groupby("arm"):
        best = rows[rows.batch_size == smallest].groupby("lr").val_acc.mean().idxmax()
        scaled = rows[(rows.batch_size == largest) & np.isclose(rows.lr, best * largest / smallest)]
        if len(scaled) > 1 and smallest < largest:
            failed = f", {int(scaled.failed.sum())} failed" if scaled.failed.any() else ""
            parts.append(f"{arm} {best_four_of_five(scaled.val_acc):.1%} at {scaled.lr.iloc[0]:.3g}{failed}")
    return f"batch {largest}: {', '.join(parts)}" if parts else ""


def _best_of_batch(batch: int, rows: pd.DataFrame) -> str:
    parts = []
    for arm, t in rows.groupby("arm"):
        means = t.groupby("lr").val_acc.mean()
        lr = means.idxmax()
        parts.append(f"{arm} {accuracy_interval(t[t.lr == lr].val_acc):.1%} at {lr:.3g}")
    return f"batch {batch}: {', '.join(parts)}"


def figure(table: pd.DataFrame) -> Figure:
    """Accuracy and failure over the peak learning rate, one column a batch size; mean and 95 % t-interval over
    seeds."""
    import matplotlib.pyplot as plt

    from workbench.lab import plots

    plots.style()
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
        arms = plots.arms_of(table)
        for offset, arm in zip(0.03 * (np.arange(len(arms)) - (len(arms) - 1) / 2), arms, strict=True):
            rows = table[(table.batch_size == size) & (table.arm == arm)]
            over = rows.groupby("lr")
            x = np.array(sorted(rows.lr.unique())) * 10**offset
            intervals = [t_interval(t.val_acc) for _, t in over]
            mean = np.array([i.mean for i in intervals])
            half = np.nan_to_num([i.high - i.mean for i in intervals])
            look = {"marker": plots.MARKERS[arm], "color": plots.COLOURS[arm]}
            top.errorbar(x, mean, half, capsize=3, lw=1.2, label=arm, **look)
            lost = np.array([t.failed.any() for _, t in over])
            top.plot(x[lost], mean[lost], "x", color="black", ms=10, zorder=5)
            shares = [share_interval(int(t.failed.sum()), len(t)) for _, t in over]
            share = np.array([s.mean for s in shares])
            bounds = [share - [s.low for s in shares], [s.high for s in shares] - share]
            bottom.errorbar(x, share, np.clip(bounds, 0, None), capsize=2, lw=1, ls=":", **look)
        top.set(xscale="log", title=f"batch {size}")
        bottom.set(xlabel="peak learning rate", ylim=(-0.05, 1.05))
        bottom.set_xticks(sorted(table.lr.unique()), [f"{v:.3g}" for v in sorted(table.lr.unique())])
        bottom.xaxis.set_minor_locator(plt.NullLocator())
    axes[0, 0].set_ylabel("validation accuracy")
    axes[0, 0].set_ylim(0, min(1.0, axes[0, 0].get_ylim()[1]))
    axes[1, 0].set_ylabel("share failed")
    axes[0, 0].plot([], [], "x", color="black", ms=8, ls="none", label="a seed failed")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, ncols=4, loc="outside lower center")
    return figure
