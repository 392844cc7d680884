"""Is a network without BatchNorm as good on your images as with it, each at its own best rate?

Not one of the paper's claims, but their use. Tables: `trials`, one row a trial of the search, with arm (NF+AGC, BN),
state, outcome, clip, lr, val_acc, failed; `confirmed`, the best of each arm on fresh seeds, with arm, seed, test_acc,
outcome, failed, lr, clip, batch_size, weights. The contrast: test accuracy without BatchNorm minus with, paired by
seed, at a margin of half a point.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.intervals import Interval, paired_interval, t_interval
from workbench.lab.statistics.verdict import Verdict
from workbench.lab.studies.parameters import Range

if TYPE_CHECKING:  # who reads the claims does without torch
    from matplotlib.axes import Axes

    from workbench.probes.noise import NoiseScale

CLAIM = Claim(
    "A network without BatchNorm is as good as with it, each at its own best rate", tables=("trials", "confirmed")
)

FAILED = "#d55e00"
NF, BN = "NF+AGC", "BN"  # the arms, as `user_network.arms` calls them
MARGIN = 0.005  # of accuracy, that the network without BatchNorm may lose and still count as good as with it
GOOD = 0.02  # validation accuracy below the best that still counts as good
END = 0.1  # of a range, on its scale, that counts as its end
NAMES = {NF: "without BatchNorm, AGC", BN: "with BatchNorm"}


def figure(trials: pd.DataFrame, confirmed: pd.DataFrame) -> Figure:
    """Where the search looked, what each rate gave, and the best of both on fresh seeds with 95 % t-intervals; failed
    trainings are crosses, pruned ones hollow.

    Columns as of `judge`.
    """
    import matplotlib.pyplot as plt

    from workbench.lab import plots

    plots.style()
    figure, (where, rates, seeds) = plt.subplots(
        1, 3, figsize=(12, 3.8), layout="constrained", width_ratios=[1.25, 1, 0.8]
    )
    agc = trials[trials.arm == "NF+AGC"]
    good = agc[agc.failed == 0]
    points = where.scatter(good.lr, good["clip"], c=good.val_acc, cmap="viridis", s=55)
    bad = agc[agc.failed != 0]
    where.scatter(bad.lr, bad["clip"], marker="x", color=FAILED, s=45, label="failed")
    where.set(xscale="log", yscale="log", xlabel="peak learning rate", ylabel="clipping threshold", title="trials")
    for axis in (where.xaxis, where.yaxis):
        plots.plain_log_ticks(axis)
    figure.colorbar(points, ax=where, label="validation accuracy")
    if len(bad):
        where.legend(frameon=False, fontsize="small")

    for arm in _arms(trials):
        _over_rate(rates, trials[trials.arm == arm], arm)
    rates.set(xscale="log", xlabel="peak learning rate", ylabel="validation accuracy", title="each at its rates")
    plots.plain_log_ticks(rates.xaxis)
    rates.legend(frameon=False, fontsize="small")

    for i, arm in enumerate(_arms(confirmed)):
        _over_seeds(seeds, i, confirmed[confirmed.arm == arm], arm)
    short = [NAMES[arm].partition(",")[0].replace(" ", "\n") for arm in _arms(confirmed)]
    seeds.set_xticks(range(len(short)), short)
    seeds.set(xlim=(-0.5, len(_arms(confirmed)) - 0.2), ylabel="test accuracy", title="best of each, fresh seeds")
    return figure


def _arms(table: pd.DataFrame) -> list[str]:
    return [arm for arm in NAMES if arm in set(table.arm)] if len(table) else []


def _over_rate(ax: "Axes", rows: pd.DataFrame, arm: str) -> None:
    from workbench.lab import plots

    look = {"color": plots.COLOURS[arm], "marker": plots.MARKERS[arm], "ls": "none"}
    pruned, failed = rows.state == "PRUNED", rows.failed != 0
    sound = rows[~pruned & ~failed]
    ax.plot(sound.lr, sound.val_acc, label=NAMES[arm], **look)
    ax.plot(rows[pruned & ~failed].lr, rows[pruned & ~failed].val_acc, mfc="none", **look)
    ax.plot(rows[failed].lr, rows[failed].val_acc, **{**look, "marker": "x"})


def _over_seeds(ax: "Axes", i: int, rows: pd.DataFrame, arm: str) -> None:
    from workbench.lab import plots

    for failed, marker in ((0, plots.MARKERS[arm]), (1, "x")):
        chosen = rows[rows.failed == failed].test_acc
        ax.plot(np.full(len(chosen), i), chosen, marker, color=plots.COLOURS[arm], alpha=0.7)
    interval = t_interval(rows.test_acc)
    if not np.isnan(interval.low):
        half = [[interval.mean - interval.low], [interval.high - interval.mean]]
        ax.errorbar(i + 0.15, interval.mean, half, fmt="_", color="black", capsize=3)


def judge(
    trials: pd.DataFrame,
    confirmed: pd.DataFrame,
    noise: "NoiseScale | None" = None,
    ranges: Mapping[str, float | dict | Range] | None = None,
) -> Verdict:
    """Is the network without BatchNorm as good as with it, within the margin, each at its own best rate?

    `trials`: arm, state, outcome, clip, lr, val_acc. `confirmed`: arm, seed, test_acc, outcome, failed, lr, clip,
    batch_size, weights; the seeds are paired. `ranges`: where `lr` and `clip` were searched, so that a best value near
    an end is told.
    """
    if confirmed.empty or NF not in set(confirmed.arm):
        nothing = Interval(np.nan, np.nan, np.nan, 0)
        sentence = "No trial without BatchNorm came to its end: lower the learning rates (`lr`), or give it more steps."
        return Verdict(sentence, None, "accuracy", nothing)
    by_seed = confirmed.pivot_table(index="seed", columns="arm", values="test_acc")
    nf = confirmed[confirmed.arm == NF].iloc[0]
    started = "" if pd.isna(nf.weights) else f" (started from {Path(nf.weights).name})"
    sentence = (
        f"Without BatchNorm{started}, at batch {nf.batch_size}, peak rate {nf.lr:.2g} and threshold {nf['clip']:.2g}: "
        f"{t_interval(by_seed[NF]):.1%} of the test split over {len(by_seed)} fresh seeds"
    )
    effect, name, holds = t_interval(by_seed[NF]), "test accuracy without BatchNorm", None
    if BN in by_seed:
        bn = confirmed[confirmed.arm == BN].iloc[0]
        effect, name = paired_interval(by_seed[NF], by_seed[BN]), "test accuracy without BatchNorm minus with"
        holds = True if effect.low > -MARGIN else False if effect.high < -MARGIN else None
        relation = {
            True: f"as good, within {MARGIN:.1%}, or better",
            False: f"worse by more than {MARGIN:.1%}",
            None: f"not decided at a margin of {MARGIN:.1%}: take more seeds, or more images",
        }[holds]
        sentence += f"; with it, at its own best rate {bn.lr:.2g}, {t_interval(by_seed[BN]):.1%}. That is {relation}"
    failed = ", ".join(f"{arm} {int(t.failed.sum())} of {len(t)}" for arm, t in confirmed.groupby("arm"))
    slow = int((confirmed.failed.astype(bool) & (confirmed.outcome != "diverged")).sum())
    if slow:
        failed += f" ({slow} of these without diverging: the training loss is still high at the end; train longer)"
    sentence += f". Failed on fresh seeds: {failed}. {_region(trials)}{_end_warnings(confirmed, ranges or {})}"
    return Verdict(
        f"{sentence}{_batch_advice(noise, int(nf.batch_size))}", holds, name, effect, in_points=BN in by_seed
    )


def _region(trials: pd.DataFrame) -> str:
    done = trials[(trials.arm == NF) & (trials.state == "COMPLETE") & (trials.outcome == "complete")]
    good = done[done.val_acc >= done.val_acc.max() - GOOD]
    return (
        f"Thresholds from {good['clip'].min():.2g} to {good['clip'].max():.2g} were within {GOOD:.0%} of the best "
        f"({len(good)} of {int((trials.arm == NF).sum())} trials)."
    )


def _end_warnings(confirmed: pd.DataFrame, ranges: Mapping[str, float | dict | Range]) -> str:
    """A sentence on the best values that lie in the first or last tenth of their range; empty where none does."""
    ends = []
    for name, given in ranges.items():
        if isinstance(given, int | float):
            continue
        searched = Range.of(given)
        for arm, rows in confirmed.dropna(subset=name).groupby("arm"):
            value = rows[name].iloc[0]
            share = searched.share_below(value)
            if min(share, 1 - share) <= END:
                end = "low" if share < 0.5 else "high"
                ends.append(f"`{name}` {value:.2g} of {arm} at the {end} end of {searched.low:g} to {searched.high:g}")
    return f" The best {', '.join(ends)}: a better one may lie beyond, search further there." if ends else ""


def _batch_advice(noise: "NoiseScale | None", batch_size: int) -> str:
    if noise is None:
        return ""
    low, high = noise.interval
    if not noise.noise_scale > 0 or (math.isinf(high) and low < batch_size):
        return f" Which batch size pays could not be told: {noise.note}."
    if low > batch_size:
        advice = "larger batches still save steps"
    elif high < 2 * batch_size:
        advice = "larger batches buy little"
    else:
        advice = "this batch is about where larger ones buy little"
    size = (
        f"at least {low:.0f} images" if math.isinf(high) else f"{noise.noise_scale:.0f} images [{low:.0f}, {high:.0f}]"
    )
    return f" The gradient noise scale at the end is {size}: {advice}."
