"""Claim 2: without clipping normalizer-free networks fail as batch and rate grow; with AGC they hold.

Source: NFNet paper, section 4.1, figure 2. Table: one row a training, with arm (BN, NF, NF+AGC and other opponents),
batch_size, lr, seed, val_acc, failed, outcome. The contrast: a seed fails at more of the batches and rates without
clipping than with it. Seeds are what is counted, by the exact sign test: the cells of one seed, or of one rate, go
together, and many of them are no further evidence.
"""

from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.intervals import (
    Interval,
    accuracy_interval,
    best_four_of_five,
    share_interval,
    share_p,
    t_interval,
)
from workbench.lab.statistics.rates import at_carried_rate
from workbench.lab.statistics.verdict import Verdict

CLAIM = Claim("Over batches and rates, normalizer-free nets fail more often without clipping than with AGC", number=2)

TUNED, KEPT, SCALED = "tuned", "rate kept", "rate scaled"


def judge(table: pd.DataFrame) -> Verdict:
    """Does a seed fail at more batches and rates without clipping than with it?

    Columns: arm (BN, NF, NF+AGC), batch_size, lr, seed, val_acc, failed, outcome.
    """
    cell = ["batch_size", "lr", "seed"]
    failed = table.pivot_table(index=cell, columns="arm", values="failed")[["NF", "NF+AGC"]].dropna()
    only_plain = int(((failed["NF"] == 1) & (failed["NF+AGC"] == 0)).sum())
    only_agc = int(((failed["NF"] == 0) & (failed["NF+AGC"] == 1)).sum())
    more = (failed["NF"] - failed["NF+AGC"]).groupby("seed").sum()  # cells that a seed loses for want of clipping
    worse, better = int((more > 0).sum()), int((more < 0).sum())
    share, p = share_interval(worse, worse + better, method="exact"), share_p(worse, worse + better)
    holds = None if p >= 0.05 else worse > better
    counts = ", ".join(f"{arm} {int(t.failed.sum())} of {len(t)}" for arm, t in table.groupby("arm", sort=False))
    sentence = (
        f"Of {len(more)} seeds {worse} fail at more batches and rates without clipping than with it, {better} at "
        f"fewer. Failed trainings: {counts}. In {only_plain} of the {only_plain + only_agc} cells where exactly one of "
        f"NF and NF+AGC fails, it is NF. Validation accuracy at the best peak rate of each arm: {_in_words(table)}."
    )
    return Verdict(sentence, holds, "share of seeds in which the unclipped net fails more often", share, p=p)


def protocols(table: pd.DataFrame) -> pd.DataFrame:
    """Each arm at each batch by three ways to choose its rate. Columns: batch_size, protocol, arm, lr, accuracy
    (validation; mean over all seeds) with low and high, best_four_of_five (the paper's way, without the worst seed),
    n, failed.

    `tuned`: the arm's best rate at that batch, by mean accuracy. `rate kept` and `rate scaled` carry its best rate at
    the smallest batch over to a larger one, as it is or in proportion to the batch (the paper's way, section 4.1);
    only where that rate is on the grid.
    """
    sizes, rows = sorted(table.batch_size.unique()), []
    for batch, protocol, (arm, trained) in product(sizes, (TUNED, KEPT, SCALED), table.groupby("arm", sort=False)):
        if protocol != TUNED and batch == sizes[0]:
            continue
        means = trained.groupby(["batch_size", "lr"]).val_acc.mean().reset_index()
        best = means[means.batch_size == batch].nlargest(1, "val_acc")
        chosen = best if protocol == TUNED else at_carried_rate(means, batch, "val_acc", scaled=protocol == SCALED)
        for lr in chosen.lr:
            at = trained[(trained.batch_size == batch) & (trained.lr == lr)]
            mean = accuracy_interval(at.val_acc)
            rows.append(
                {
                    "batch_size": batch,
                    "protocol": protocol,
                    "arm": arm,
                    "lr": lr,
                    "accuracy": mean.mean,
                    "low": mean.low,
                    "high": mean.high,
                    "best_four_of_five": best_four_of_five(at.val_acc),
                    "n": len(at),
                    "failed": int(at.failed.sum()),
                }
            )
    return pd.DataFrame(rows)


def _in_words(table: pd.DataFrame) -> str:
    parts = []
    for (batch, protocol), rows in protocols(table).groupby(["batch_size", "protocol"], sort=False):
        paper = protocol == SCALED  # the paper scales the rate and leaves the worst seed out
        arms = ", ".join(
            f"{row.arm} {row.best_four_of_five if paper else Interval(row.accuracy, row.low, row.high, row.n):.1%} "
            f"at {row.lr:.3g}" + (f" ({row.failed} of {row.n} failed)" if row.failed else "")
            for row in rows.itertuples()
        )
        kind = {
            TUNED: "",
            KEPT: ", the rate of the smallest batch",
            SCALED: ", that rate scaled, the worst seed left out",
        }
        parts.append(f"batch {batch}{kind[protocol]}: {arms}")
    return "; ".join(parts)


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
