"""Question: is a normalizer-free net as good as a fast BatchNorm net, in hardly more time?

This is no claim of the paper in these words, but its promise (NFNet paper, section 1 and figure 1). It promises
BatchNorm's accuracy at no more than its cost. Both arms tune in the same way and with as many trials: BN at a finer
grid of rates, NF+AGC at each of several thresholds. The numbers of steps are fixed before the run.

Contrast, written down before the confirmation: test accuracy of NF+AGC within 0.3 points of BN's or above it, in at
most 1.3 times BN's seconds. Seeds are paired. Both must be shown.

Tables:
    screened: One row per training. Columns arm, lr, seed, steps, val_acc, failed, outcome.
    confirmed: As `screened`, with test_acc.
    paces: The pace of each confirmed training, as `paces` returns it.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.failure_line import collapsed
from workbench.lab.statistics.intervals import Interval, accuracy_interval, below_p, points_with_ci, t_interval
from workbench.lab.statistics.preconditions import BATCHNORM, batchnorm_trained_out
from workbench.lab.statistics.rates import by_seed, with_edges
from workbench.lab.statistics.undecided import nothing_to_compare
from workbench.lab.statistics.verdict import Effect, Verdict
from workbench.lab.store.client import Store

CLAIM = Claim(
    "NF+AGC is within 0.3 points of a fast BatchNorm net in at most 1.3 times its seconds",
    precondition=BATCHNORM,
    tables=("screened", "confirmed", "paces"),
)

MARGIN = 0.003  # accuracy, so 0.3 points
RATIO = 1.3  # of BN's seconds

# Dense bfloat16 matrix products in operations per second, from NVIDIA's data sheets. The first name that is part of the
# device's name counts.
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}


def peak_of(device: str) -> float:
    """Return the device's peak in bfloat16 operations per second. NaN for an unknown device."""
    return next((peak for name, peak in PEAKS.items() if name in device), float("nan"))


def paces(confirmed: pd.DataFrame, operations: dict[str, float], store: Store, precision: str) -> pd.DataFrame:
    """Measure seconds, pace and share of the device's peak for each training.

    Args:
        confirmed: The confirmed trainings.
        operations: By arm the operations for one image, forward and backward.
        store: Holds the history of each training.
        precision: Precision of the trainings.

    Returns:
        One row per training:

        - arm, seed, device
        - seconds: time for its steps at the pace between its first and last row of history, with evaluations
        - images_per_second: that pace
        - peak_share: share of the device's peak in bfloat16. NaN if the peak is unknown or the precision is another one
    """
    rows = []
    for training in confirmed.itertuples():
        history = store.read_table(training.run_id, "history") if training.outcome == "complete" else pd.DataFrame()
        pace = _images_per_second(history)
        peak = peak_of(training.device) if precision.startswith("bfloat16") else float("nan")
        rows.append(
            {
                "arm": training.arm,
                "seed": training.seed,
                "device": training.device,
                "seconds": training.steps * training.batch_size / pace,
                "images_per_second": pace,
                "peak_share": pace * operations[training.arm] / peak,
            }
        )
    return pd.DataFrame(rows)


def _images_per_second(history: pd.DataFrame) -> float:
    """Measure the pace between the first and the last row. NaN for fewer than two rows.

    Time before the first row belongs to the start of the device, not to the network.
    """
    if len(history) < 2:
        return float("nan")
    ends = history.sort_values("step").iloc[[0, -1]]
    return float(np.ptp(ends.samples_seen) / np.ptp(ends.seconds))


def judge(screened: pd.DataFrame, confirmed: pd.DataFrame, paces: pd.DataFrame) -> Verdict:
    """Judge whether NF+AGC is within the margins of BN's accuracy and seconds."""
    if (undecided := nothing_to_compare(confirmed, "NF+AGC", "BN", tried=screened)) is not None:
        return undecided
    accuracies, seconds = by_seed(confirmed), by_seed(paces, value="seconds")
    behind = (accuracies["BN"] - accuracies["NF+AGC"]).dropna()
    doublings = _doublings(seconds)
    lost, longer = t_interval(behind), t_interval(doublings)
    p = float(np.max([below_p(behind, MARGIN), below_p(doublings, np.log2(RATIO))]))  # NaN if either is
    effect = Effect(
        "accuracy of NF+AGC minus BN", Interval(-lost.mean, -lost.high, -lost.low, lost.n), p, in_points=True
    )
    refuted = lost.low > MARGIN or longer.low > np.log2(RATIO)
    holds = True if p < 0.05 else False if refuted else None
    relation = {True: "is", False: "is not", None: "is not shown to be"}[holds]
    headline = f"NF+AGC {relation} as accurate and fast as BN, within both margins: {points_with_ci(effect.value)}."
    table = _details(confirmed, paces)
    ratio = longer.map(np.exp2)
    table.loc[table.arm == "NF+AGC", ["times_bn", "low", "high"]] = ratio.mean, ratio.low, ratio.high
    return Verdict(holds, effect, headline, with_edges(table, screened)).on(
        batchnorm_trained_out(CLAIM.precondition, confirmed)
    )


def _doublings(seconds: pd.DataFrame) -> pd.Series:
    """Return by seed the doublings of BN's seconds.

    A pair is left out if one of its trainings did not end, because it has no pace.
    """
    if not {"NF+AGC", "BN"} <= set(seconds):
        return pd.Series(dtype=float)
    return np.log2(seconds["NF+AGC"] / seconds["BN"]).dropna()


def _details(confirmed: pd.DataFrame, paces: pd.DataFrame) -> pd.DataFrame:
    """One row per arm: test accuracy, steps, device, and mean seconds, pace and peak share."""
    rows = []
    for arm, trained in confirmed.groupby("arm", sort=False):
        accuracy, paced = accuracy_interval(trained.test_acc), paces[paces.arm == arm]
        rows.append(
            {"arm": arm, "accuracy": accuracy.mean, "accuracy_low": accuracy.low, "accuracy_high": accuracy.high,
             "n": accuracy.n, "clip": trained["clip"].iloc[0], "steps": trained.steps.iloc[0],
             "device": ", ".join(paced.device.unique()),
             "images_per_second": paced.images_per_second.mean(), "peak_share": paced.peak_share.mean(),
             "seconds": paced.seconds.mean(), "times_bn": np.nan, "low": np.nan, "high": np.nan}
        )  # fmt: skip
    return pd.DataFrame(rows)


def figure(screened: pd.DataFrame, confirmed: pd.DataFrame, paces: pd.DataFrame) -> Figure:
    """Draw accuracy over seconds, one mark per seed, and the screening.

    Lines in the left panel show the margins around BN's means. The right panel has validation accuracy over the rates.
    """
    from workbench.lab import plots

    figure, (left, right) = plots.panels(1, 2, (10, 4.2))
    table = confirmed.merge(paces, on=["arm", "seed"], suffixes=("", "_paced"))
    arms = plots.looks(dict.fromkeys(confirmed.arm))
    for arm, look in arms.items():
        rows = table[table.arm == arm]
        ended = {"failed": rows.failed, "collapsed": collapsed(rows)}
        plots.trials(left, rows.seconds, rows.test_acc, look, arm, **ended)
    bn = table[table.arm == "BN"]
    least, most = bn.test_acc.mean() - MARGIN, RATIO * bn.seconds.mean()
    left.axhline(least, color="0.4", ls="--", lw=1, label=f"BN's mean less {100 * MARGIN:g} points")
    left.axvline(most, color="0.4", ls=":", lw=1, label=f"{RATIO:g} times BN's seconds")
    plots.accuracy_axis(left, "test")
    left.set(xlabel="seconds of a training", title="what each seed reached, and when")
    left.set_xlim(left=0)
    unclipped = {arm: look for arm, look in arms.items() if arm == "BN"}
    plots.over_rate(right, screened[screened["clip"].isna()], "arm", unclipped)
    thresholds = plots.shades("NF+AGC", sorted(screened["clip"].dropna().unique()))
    names = {clip: f"NF+AGC, threshold {clip:g}" for clip in thresholds}
    plots.over_rate(right, screened[screened["clip"].notna()], "clip", thresholds, names)
    plots.rate_axis(right, screened.lr)
    right.set(title="screening")
    plots.legend_outside(figure, columns=4)
    return figure
