"""Question: do normalizer-free networks fail as batch and rate grow, unless AGC clips them?

The claim is that of stability_boundary, here over more batches and opponents.

Source: NFNet paper, section 4.1, figure 2.

Contrast: a seed fails at more of the batches and rates without clipping than with it. The exact sign test counts seeds.
The cells of one seed, or of one rate, are not independent, so more cells are not more evidence.

Table:
    table: One row per training. Columns arm (BN, NF, NF+AGC and other opponents), batch_size, lr, seed, val_acc,
        failed, outcome.
"""

from itertools import product

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.failure_line import over_lines
from workbench.lab.statistics.intervals import (
    accuracy_interval,
    best_four_of_five,
    share_interval,
    share_p,
    t_bounds,
    with_ci,
)
from workbench.lab.statistics.panels import draw_by_line
from workbench.lab.statistics.preconditions import FAILURES, some_fail
from workbench.lab.statistics.rates import at_carried_rate
from workbench.lab.statistics.undecided import nothing_to_compare
from workbench.lab.statistics.verdict import Effect, Verdict

CLAIM = Claim(
    "Over batches and rates, normalizer-free nets fail more often without clipping than with AGC",
    precondition=FAILURES,
    unit="share of seeds",
)

TUNED, KEPT, SCALED = "tuned", "rate kept", "rate scaled"
CELL = ["batch_size", "lr", "seed"]


def judge(table: pd.DataFrame) -> Verdict:
    """Judge at every failure line whether a seed fails at more batches and rates without clipping than with it.

    Args:
        table: Columns arm (BN, NF, NF+AGC), batch_size, lr, seed, val_acc, val_loss, outcome, classes or data.
    """
    return over_lines(_at_line, table).on(some_fail(CLAIM.precondition, table, "NF", "NF+AGC"))


def _at_line(table: pd.DataFrame) -> Verdict:
    if (undecided := nothing_to_compare(table, "NF", "NF+AGC")) is not None:
        return undecided
    failed = table.pivot_table(index=CELL, columns="arm", values="failed")[["NF", "NF+AGC"]].dropna()
    more = (failed["NF"] - failed["NF+AGC"]).groupby("seed").sum()  # cells that a seed loses without clipping
    worse, better = int((more > 0).sum()), int((more < 0).sum())
    share, p = share_interval(worse, worse + better, method="exact"), share_p(worse, worse + better)
    holds = None if p >= 0.05 else worse > better
    effect = Effect("share of seeds in which the unclipped net fails more often", share, p)
    relation = {True: "fails", False: "rarely fails", None: "is not shown to fail"}[holds]
    seeds = with_ci(share.map(lambda value: 100 * value), "% of seeds", ".0f")
    headline = f"NF {relation} more often than NF+AGC: it does in {seeds}."
    return Verdict(holds, effect, headline, _details(table))


def _details(table: pd.DataFrame) -> pd.DataFrame:
    """One row per arm: failed trainings, and accuracy at the largest batch by protocol.

    `fails_alone` counts the cells in which this arm fails and NF+AGC does not, `agc_fails_alone` the reverse.
    Accuracies are of the validation split, `accuracy` at the tuned rate `lr`. `rate_kept` and `rate_scaled` are as in
    `protocols`. As in the paper, `rate_scaled` leaves out the worst seed.
    """
    failed = table.pivot_table(index=CELL, columns="arm", values="failed")
    rows = []
    for arm, trained in table.groupby("arm", sort=False):
        alone, agc_alone = failed[arm] > failed["NF+AGC"], failed[arm] < failed["NF+AGC"]
        rows.append({"arm": arm, "failed": int(trained.failed.sum()), "n": len(trained),
                     "fails_alone": int(alone.sum()), "agc_fails_alone": int(agc_alone.sum())})  # fmt: skip
    by_protocol = protocols(table)
    by_protocol = by_protocol[by_protocol.batch_size == by_protocol.batch_size.max()]

    def chosen(protocol: str) -> pd.DataFrame:
        return by_protocol[by_protocol.protocol == protocol].set_index("arm")

    ways = chosen(TUNED)[["batch_size", "lr", "accuracy", "low", "high"]].assign(
        rate_kept=chosen(KEPT).accuracy,
        rate_scaled=chosen(SCALED).best_four_of_five,
        rate_scaled_failed=chosen(SCALED).failed,
    )
    return pd.DataFrame(rows).join(ways, on="arm")


def protocols(table: pd.DataFrame) -> pd.DataFrame:
    """Compare three ways to choose each arm's rate at each batch.

    `tuned` takes the arm's best rate at that batch, by mean accuracy. `rate kept` and `rate scaled` use its best rate
    at the smallest batch for larger batches. `rate kept` does not change it. `rate scaled` multiplies it by the ratio
    of the batches (the paper's way, section 4.1). Both need a grid that contains that rate.

    Returns:
        Columns batch_size, protocol, arm, lr, accuracy (validation, mean over all seeds) with low and high,
        best_four_of_five (the paper's way, without the worst seed), n, failed.
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


def figure(table: pd.DataFrame) -> Figure:
    """Draw accuracy over the peak learning rate, and how many seeds failed. One column per batch size.

    Lines are means over seeds, with 95 % intervals. The last column has the effect by failure line.
    """
    from workbench.lab import plots

    sizes, looks = sorted(table.batch_size.unique()), plots.looks(plots.in_order(table.arm))
    size, columns = (5 + 3.6 * len(sizes), 4 + 0.33 * len(looks)), len(sizes) + 1
    figure, axes = plots.panels(2, columns, size, height_ratios=[3, 0.8 + 0.3 * len(looks)])
    for top, bottom, batch in zip(axes, axes[columns:-1], sizes, strict=False):
        rows = table[table.batch_size == batch]
        plots.over_rate(top, rows, "arm", looks, bounds=t_bounds)
        _failures(bottom, rows, list(looks))
        plots.rate_axis(bottom, table.lr)
        bottom.sharex(top)
        top.set(title=f"batch {batch}", xlabel="", ylim=(0, min(1.0, 1.1 * table.val_acc.max())))
    draw_by_line(axes[columns - 1], judge(table).curve, "share of seeds")
    axes[-1].axis("off")
    plots.legend_outside(figure, axes[:columns])
    return figure


def _failures(ax: Axes, rows: pd.DataFrame, arms: list[str]) -> None:
    """Write how many seeds of each arm failed at each rate. The darker a cell, the more."""
    from workbench.lab import plots

    cells = rows.groupby(["arm", "lr"]).failed.agg(["sum", "size"]).reset_index()
    share = cells["sum"] / cells["size"]
    ax.scatter(cells.lr, cells.arm.map(arms.index), c=share, cmap="Reds", vmin=0, vmax=1.4, marker="s", s=260, lw=0)
    for cell in cells.itertuples():
        ax.text(cell.lr, arms.index(cell.arm), f"{cell.sum}/{cell.size}", ha="center", va="center", fontsize="x-small")
    plots.name_axis(ax.yaxis, arms)
    ax.set(title="seeds that failed")
