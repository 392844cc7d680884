"""Question: do accumulated large batches train networks without normalization like real ones?

That their gradients are equal is an identity, which a test checks. So this is no claim. What remains is whether
rounding grows during a training.

Source: NFNet paper, section 1 (BatchNorm ties the images of a batch together). The gradient of an NF network is a mean
over images, so accumulation over micro-batches changes only the rounding. BatchNorm normalises each micro-batch by its
own statistics. This trains ghost BatchNorm (Hoffer et al. 2017), another function, however small the step is.

Contrast, written down before the confirmation: test accuracy of NF+AGC, accumulated minus at once, is 0 within 0.5
points, over fresh seeds.

Tables:
    gradients: As `gradient_differences` returns it. Columns arm, micro_batch, seed, difference.
    table: One row per training. Columns arm, micro_batch, seed, test_acc.
"""

import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.intervals import beyond_p, points_with_ci, t_interval, within_p
from workbench.lab.statistics.preconditions import TRAINS, none_fails
from workbench.lab.statistics.rates import by_seed
from workbench.lab.statistics.undecided import nothing_to_compare
from workbench.lab.statistics.verdict import Effect, Verdict

CLAIM = Claim(
    "Accumulated large batches train a normalizer-free net like real ones",
    precondition=TRAINS,
    tables=("gradients", "table"),
)

MARGIN = 0.005  # of test accuracy


def judge(gradient_table: pd.DataFrame, table: pd.DataFrame) -> Verdict:
    """Judge whether an accumulated batch equals a real one in gradient and test accuracy."""
    if (undecided := nothing_to_compare(table, "NF+AGC")) is not None:
        return undecided
    differences = _differences(table)
    nf_difference = differences["NF+AGC"]
    equal_p, other_p = within_p(nf_difference, MARGIN), beyond_p(nf_difference, MARGIN)
    holds = True if equal_p < 0.05 else False if other_p < 0.05 else None
    effect = Effect(
        "test accuracy, accumulated minus at once", t_interval(nf_difference), min(equal_p, other_p), in_points=True
    )
    accuracies = {True: "equal accuracies within the margin", False: "different accuracies, beyond the margin",
                  None: "accuracies that are not shown to be equal"}[holds]  # fmt: skip
    headline = f"Accumulated and whole batches give NF+AGC {accuracies}: {points_with_ci(effect.value)}."
    verdict = Verdict(holds, effect, headline, _details(differences, gradient_table, table))
    return verdict.on(none_fails(CLAIM.precondition, table, "NF+AGC"))


def _details(differences: dict[str, pd.Series], gradient_table: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """One row per arm: accuracy accumulated minus at once, and the gradient's difference.

    That difference is relative, and the largest of all measured.
    """
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
    """Return by arm the test accuracy accumulated minus at once, per seed."""
    by_arm = {}
    for arm, rows in table.groupby("arm", sort=False):
        rows = rows.assign(way=rows.micro_batch.notna().map({True: "parts", False: "at once"}))
        pairs = by_seed(rows, "way").reindex(columns=["parts", "at once"]).dropna()
        by_arm[arm] = pairs["parts"] - pairs["at once"]
    return by_arm


def figure(gradient_table: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Draw the distance of the accumulated gradient, and the difference in test accuracy.

    The right panel has one point per seed, the 95 % interval, and the margin of equality.
    """
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
