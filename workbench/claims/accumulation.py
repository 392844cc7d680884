"""Claim 6: accumulated large batches equal real ones for networks without normalization.

Source: NFNet paper, section 1 (BatchNorm ties the images of a batch together). An NF network's gradient is a mean over
images, so accumulating it over micro-batches changes rounding alone. With BatchNorm each micro-batch is normalised by
its own statistics: what is trained is ghost BatchNorm (Hoffer et al. 2017), another function, however small the step.
The contrast, written down before the confirmation: test accuracy of NF+AGC accumulated minus at once is 0 within 0.5
points, over fresh seeds. Tables: `gradients`, as of evidence.gradients, and `table` (one row a training: arm,
micro_batch, seed, test_acc).
"""

import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.intervals import beyond_p, points_with_ci, t_interval, within_p
from workbench.lab.statistics.rates import by_seed
from workbench.lab.statistics.verdict import Effect, Verdict

CLAIM = Claim(
    "Accumulated large batches equal real ones for normalizer-free nets", number=6, tables=("gradients", "table")
)

MARGIN = 0.005  # of test accuracy


def judge(gradient_table: pd.DataFrame, table: pd.DataFrame) -> Verdict:
    """Is an accumulated batch a real one, in the gradient and in the test accuracy?"""
    differences = _differences(table)
    of_nf = differences["NF+AGC"]
    equal_p, other_p = within_p(of_nf, MARGIN), beyond_p(of_nf, MARGIN)
    holds = True if equal_p < 0.05 else False if other_p < 0.05 else None
    effect = Effect(
        "test accuracy, accumulated minus at once", t_interval(of_nf), min(equal_p, other_p), in_points=True
    )
    accuracies = {True: "equal accuracies within the margin", False: "different accuracies, beyond the margin",
                  None: "accuracies that are not shown to be equal"}[holds]  # fmt: skip
    headline = f"Accumulated and whole batches give NF+AGC {accuracies}: {points_with_ci(effect.value)}."
    return Verdict(holds, effect, headline, _details(differences, gradient_table, table))


def _details(differences: dict[str, pd.Series], gradient_table: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """One row per arm: accuracy accumulated minus at once, and the largest relative difference of the gradient."""
    largest = gradient_table.groupby("arm").difference.max()
    parts = ", ".join(f"{size:g}" for size in sorted(table.micro_batch.dropna().unique()))
    rows = []
    for arm, values in differences.items():
        points = t_interval(100 * values)
        rows.append(
            {"arm": arm, "batch_size": table.batch_size.iloc[0], "micro_batch": parts, "points": points.mean,
             "low": points.low, "high": points.high, "n": points.n, "gradient_difference": largest.get(arm)}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _differences(table: pd.DataFrame) -> dict[str, pd.Series]:
    """By arm: accumulated minus at once, seed by seed."""
    by_arm = {}
    for arm, rows in table.groupby("arm", sort=False):
        rows = rows.assign(way=rows.micro_batch.notna().map({True: "parts", False: "at once"}))
        pairs = by_seed(rows, "way").dropna()
        by_arm[arm] = pairs["parts"] - pairs["at once"]
    return by_arm


def figure(gradient_table: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Left: how far the accumulated gradient is from that of the whole batch. Right: the difference in test accuracy,
    a point a seed, with its 95 % interval and the margin of equality."""
    import matplotlib.pyplot as plt
    import numpy as np

    from workbench.lab import plots

    plots.style()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for i, (arm, rows) in enumerate(gradient_table.groupby("arm", sort=False)):
        look = plots.look_of(arm, i)
        over = rows.groupby("micro_batch").difference
        left.plot(over.mean().index, over.mean(), f"{look['fmt']}-", color=look["color"], ms=5, label=arm)
    left.set(xscale="log", yscale="log", xlabel="micro-batch, images", ylabel="|difference| / |gradient|",
             title="the gradient, accumulated or at once (float64)")  # fmt: skip
    left.xaxis.set_major_locator(plt.FixedLocator(sorted(gradient_table.micro_batch.unique())))
    left.xaxis.set_major_formatter("{x:g}")
    left.minorticks_off()
    left.legend(frameon=False, fontsize="small")
    differences = _differences(table)
    for i, (arm, values) in enumerate(differences.items()):
        look = plots.look_of(arm, i)
        interval = t_interval(values)
        right.plot(np.full(len(values), i) - 0.1, 100 * values, look["fmt"], color=look["color"], alpha=0.5)
        right.errorbar(i + 0.1, 100 * interval.mean,
                       [[100 * (interval.mean - interval.low)], [100 * (interval.high - interval.mean)]],
                       fmt="_", color="black", capsize=3)  # fmt: skip
    right.axhspan(-100 * MARGIN, 100 * MARGIN, color="0.85", lw=0, zorder=0, label="equal: within the margin")
    right.set_xticks(range(len(differences)), list(differences))
    right.set(xlim=(-0.6, len(differences) - 0.4), ylabel="points", title="test accuracy, accumulated minus at once")
    figure.legend(*right.get_legend_handles_labels(), frameon=False, loc="outside lower right")
    return figure
