"""Claim 5: at small batches a normalizer-free network keeps its accuracy.

A BatchNorm network loses accuracy.

Source: Brock et al. 2021a, the precursor paper. At batch 4 on ImageNet it reports 69.9 % against 55.7 %.

Contrast, written down before the confirmation: (test accuracy of NF+AGC at the smallest batch minus at the largest)
minus the same of BN. Seeds are paired.

"BN recomputed" is the same training as BN. After training, its statistics are computed again from training images that
are augmented as in training. All arms have as many trials at each batch.

Tables, one row per training:
    screened: Columns arm (BN, BN recomputed, GN, NF, NF+AGC), batch_size, clip, lr (the peak rate per 256 images),
        seed, failed, val_acc. NF+AGC tries several thresholds, the others a finer grid of rates.
    confirmed: As `screened`, with test_acc. Each arm and batch trains at its own best rate, NF+AGC also at its best
        threshold, on fresh seeds.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.effects import EQUAL
from workbench.lab.statistics.intervals import (
    accuracy_interval,
    below_p,
    difference_p,
    holm,
    points_with_ci,
    side,
    t_interval,
)
from workbench.lab.statistics.preconditions import BATCHNORM, batchnorm_trained_out
from workbench.lab.statistics.rates import by_seed, with_edges
from workbench.lab.statistics.undecided import NOTHING, nothing_to_compare
from workbench.lab.statistics.verdict import Effect, Verdict

CLAIM = Claim(
    "As the batch shrinks to 4, a normalizer-free net loses less accuracy than BatchNorm",
    precondition=f"{BATCHNORM} at the largest batch",
    number=5,
    tables=("screened", "confirmed"),
)

RECOMPUTED = {"BN": "BN recomputed"}  # arm: its name with recomputed statistics
ARMS = ["BN", "BN recomputed", "GN", "NF", "NF+AGC"]


def per_image(table: pd.DataFrame) -> pd.DataFrame:
    """Make `lr` the peak rate per 256 images, as in the grid.

    `peak_lr` keeps the peak rate of the training.
    """
    return table.assign(peak_lr=table.lr, lr=table.base_lr)


def changes(confirmed: pd.DataFrame) -> pd.DataFrame:
    """Compare each arm and batch with the largest batch.

    Returns:
        One row per arm and batch:

        - arm, batch_size, lr, failed, n
        - accuracy (test, mean) with acc_low and acc_high
        - change from the largest batch, paired by seed, with low, high and p
        - p_holm: p adjusted over all rows
    """
    reference, rows = confirmed.batch_size.max(), []
    for arm in (arm for arm in ARMS if arm in set(confirmed.arm)):
        cells = confirmed[confirmed.arm == arm]
        values = by_seed(cells, "batch_size")
        for batch in values.columns:
            accuracy, difference = (
                accuracy_interval(values[batch].dropna()),
                (values[batch] - values[reference]).dropna(),
            )
            change = t_interval(difference)
            at = cells[cells.batch_size == batch]
            rows.append(
                {
                    "arm": arm, "batch_size": batch, "lr": at.lr.iloc[0], "failed": int(at.failed.sum()), "n": len(at),
                    "accuracy": accuracy.mean, "acc_low": accuracy.low, "acc_high": accuracy.high,
                    "change": change.mean, "low": change.low, "high": change.high,
                    "p": difference_p(difference) if batch != reference else np.nan,
                }
            )  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table.p))


def contrast(confirmed: pd.DataFrame, arm: str, against: str) -> pd.Series:
    """Return by seed the change of `arm` minus that of `against`.

    The change is from the largest to the smallest batch.
    """
    smallest, reference = confirmed.batch_size.min(), confirmed.batch_size.max()
    kept = {}
    for name in (arm, against):
        values = by_seed(confirmed[confirmed.arm == name], "batch_size")
        kept[name] = values[smallest] - values[reference]
    return (kept[arm] - kept[against]).dropna()


def judge(screened: pd.DataFrame, confirmed: pd.DataFrame) -> Verdict:
    """Judge whether NF+AGC loses less than BN as the batch shrinks."""
    if (undecided := nothing_to_compare(confirmed, "NF+AGC", "BN", tried=screened)) is not None:
        return undecided
    difference = contrast(confirmed, "NF+AGC", "BN")
    effect = Effect("loss of BN minus loss of NF+AGC", t_interval(difference), difference_p(difference), in_points=True)
    holds = side(effect.value)
    relation = {True: "keeps more", False: "keeps less", None: "is not shown to keep more or less"}[holds]
    headline = f"NF+AGC {relation} accuracy than BN as the batch shrinks: {points_with_ci(effect.value)}."
    verdict = Verdict(holds, effect, headline, with_edges(_details(confirmed), screened, by=["batch_size"]))
    return verdict.on(
        batchnorm_trained_out(CLAIM.precondition, confirmed[confirmed.batch_size == confirmed.batch_size.max()])
    )


def _details(confirmed: pd.DataFrame) -> pd.DataFrame:
    """One row per arm at the smallest batch.

    `points` is the change from the largest batch. `p_kept` tests that the loss is at most half a point. `agc_keeps` is
    the change of NF+AGC minus this one, in points. `clips` is the threshold of each batch.
    """
    at = changes(confirmed)
    rows = []
    for row in at[at.batch_size == at.batch_size.min()].itertuples():
        trained = confirmed[confirmed.arm == row.arm]
        values = by_seed(trained, "batch_size")
        loss = (values[at.batch_size.max()] - values[row.batch_size]).dropna()
        more = t_interval(100 * contrast(confirmed, "NF+AGC", row.arm)) if row.arm != "NF+AGC" else NOTHING
        clips = trained.groupby("batch_size")["clip"].first().dropna()
        rows.append(
            {"arm": row.arm, "batch_size": row.batch_size, "accuracy": row.accuracy, "points": 100 * row.change,
             "low": 100 * row.low, "high": 100 * row.high, "p_holm": row.p_holm, "p_kept": below_p(loss, EQUAL),
             "agc_keeps": more.mean, "agc_keeps_low": more.low, "agc_keeps_high": more.high,
             "failed": int(trained.failed.sum()), "n": len(trained),
             "clips": ", ".join(f"{clip:g} at {batch}" for batch, clip in clips.items())}
        )  # fmt: skip
    return pd.DataFrame(rows)


def figure(screened: pd.DataFrame, confirmed: pd.DataFrame) -> Figure:
    """Draw test accuracy of each arm and batch, the change from the largest to the smallest batch, and the best rates.

    One line per arm. Small points are seeds, and intervals are at 95 %. The change is paired by seed.
    """
    from workbench.lab import plots

    table = changes(confirmed)
    arms, smallest, reference = list(dict.fromkeys(table.arm)), table.batch_size.min(), table.batch_size.max()
    size = (13, 1.9 + 0.6 * len(arms))
    figure, (accuracy, change, rates) = plots.panels(1, 3, size, sharey=True, width_ratios=[1.2, 1.2, 1])
    looks = plots.ordered_looks(sorted(table.batch_size.unique()))
    for shift, (batch, look) in zip(np.linspace(-0.25, 0.25, len(looks)), looks.items(), strict=True):
        rows = table[table.batch_size == batch]
        y = rows.arm.map(arms.index) + shift
        for place, arm in zip(y, rows.arm, strict=True):
            single = confirmed[(confirmed.arm == arm) & (confirmed.batch_size == batch)].test_acc
            accuracy.plot(100 * single, np.full(len(single), place + 0.08), ".", ms=3, color="0.65", label="a seed")
        percent = (100 * rows[name] for name in ("accuracy", "acc_low", "acc_high"))
        plots.intervals(accuracy, y, *percent, look, across=True, label=f"batch {batch}")
        plots.mark_failed(accuracy, 100 * rows.accuracy[rows.failed > 0], y[rows.failed > 0])
        rates.plot(rows.lr, y, look.marker, color=look.color)
    rows = table[table.batch_size == smallest]
    for arm in arms if smallest < reference else []:
        values = by_seed(confirmed[confirmed.arm == arm], "batch_size")
        difference = 100 * (values[smallest] - values[reference]).dropna()
        at = arms.index(arm) + np.linspace(0.1, 0.3, len(difference))
        change.plot(difference, at, ".", ms=4, color="0.65", label="a seed")
    in_points = (100 * rows[name] for name in ("change", "low", "high"))
    plots.intervals(change, rows.arm.map(arms.index), *in_points, plots.Look("0.2", "D"), across=True)
    change.axvline(0, color="0.3", lw=0.8)
    plots.name_axis(accuracy.yaxis, arms)
    accuracy.set(title="after an equal number of images", xlabel="test accuracy, %")
    change.set(title=f"batch {smallest} minus batch {reference}", xlabel="test accuracy, points")
    plots.log_axis(rates.xaxis, "peak learning rate per 256 images", screened.lr)
    rates.set(title="best rate in screening")
    plots.legend_outside(figure, columns=6)
    return figure
