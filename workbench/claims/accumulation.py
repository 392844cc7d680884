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
    from workbench.lab import plots

    figure, (left, right) = plots.panels(1, 2, (9, 4))
    for arm, look in plots.looks(dict.fromkeys(gradient_table.arm)).items():
        mean = gradient_table[gradient_table.arm == arm].groupby("micro_batch").difference.mean()
        left.plot(mean.index, mean, f"{look.marker}-", color=look.color, ms=5, label=arm)
    plots.log_axis(left.xaxis, "micro-batch, images", gradient_table.micro_batch)
    left.set(yscale="log", ylabel="|difference| / |gradient|", title="the gradient, accumulated or at once (float64)")
    differences = _differences(table)
    for i, (arm, look) in enumerate(plots.looks(differences).items()):
        values = 100 * differences[arm]
        plots.seeds(right, i, values, 0 * values, t_interval(values), look, arm)
    right.axhspan(-100 * MARGIN, 100 * MARGIN, color="0.85", lw=0, zorder=0, label="equal: within the margin")
    plots.name_axis(right.xaxis, list(differences))
    right.set(ylabel="points", title="test accuracy, accumulated minus at once")
    plots.legend_outside(figure)
    return figure
