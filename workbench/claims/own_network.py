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
from workbench.lab.statistics.intervals import (
    Interval,
    accuracy_interval,
    paired_interval,
    points_with_ci,
    t_interval,
    with_ci,
)
from workbench.lab.statistics.verdict import Effect, Verdict, fact
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
LONGER = "the training loss is still high at the end: train longer"
FURTHER = "a better value may lie beyond: search further"
LARGER, ENOUGH = "larger batches still save steps", "larger batches buy little"
ABOUT = "this batch is about where larger ones buy little"
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
        effect = Effect("accuracy", t_interval([]))
        headline = "No trial without BatchNorm completed: lower the learning rates (`lr`), or give it more steps."
        return Verdict(None, effect, headline, pd.DataFrame([fact(*_good_thresholds(trials))]))
    values = confirmed.pivot_table(index="seed", columns="arm", values="test_acc")
    if BN in values:
        difference = paired_interval(values[NF], values[BN])
        effect = Effect("test accuracy without BatchNorm minus with", difference, in_points=True)
        holds = True if difference.low > -MARGIN else False if difference.high < -MARGIN else None
        relation = {True: "as good as", False: "worse than", None: "not shown to be as good as"}[holds]
        headline = f"Without BatchNorm your network is {relation} with it: {points_with_ci(difference)}."
    else:
        effect, holds = Effect("test accuracy without BatchNorm", t_interval(values[NF])), None
        accuracy = with_ci(effect.value.map(lambda value: 100 * value), "% of the test images", ".1f")
        headline = f"Your network without BatchNorm gets {accuracy}, without a control to compare."
    rows = [*_accuracies(confirmed), fact(*_good_thresholds(trials)), *_values_at_an_end(confirmed, ranges or {})]
    rows += [] if noise is None else [_noise_fact(noise, int(confirmed.batch_size.iloc[0]))]
    return Verdict(holds, effect, headline, pd.DataFrame(rows).fillna({"started_from": "", "advice": ""}))


def _accuracies(confirmed: pd.DataFrame) -> list[dict]:
    """By arm the test accuracy of its best point; `slow` counts failures without divergence."""
    rows = []
    for arm in _arms(confirmed):
        trained = confirmed[confirmed.arm == arm]
        first, slow = trained.iloc[0], int((trained.failed.astype(bool) & (trained.outcome != "diverged")).sum())
        rows.append(
            fact(
                f"test accuracy {NAMES[arm]}", accuracy_interval(trained.test_acc), lr=first.lr, clip=first["clip"],
                batch_size=first.batch_size, failed=int(trained.failed.sum()), slow=slow,
                started_from="" if pd.isna(first.weights) else Path(first.weights).name,
                advice=LONGER if slow else "",
            )
        )  # fmt: skip
    return rows


def _good_thresholds(trials: pd.DataFrame) -> tuple[str, Interval]:
    done = trials[(trials.arm == NF) & (trials.state == "COMPLETE") & (trials.outcome == "complete")]
    good = done[done.val_acc >= done.val_acc.max() - GOOD]["clip"]
    name = f"thresholds of {len(good)} of {int((trials.arm == NF).sum())} trials, within {GOOD:.0%} of the best"
    return name, Interval(math.nan, good.min(), good.max(), len(good))


def _values_at_an_end(confirmed: pd.DataFrame, ranges: Mapping[str, float | dict | Range]) -> list[dict]:
    """The best values that lie in the first or last tenth of their range, each with the range as its bounds."""
    rows = []
    for name, given in ranges.items():
        if isinstance(given, int | float):
            continue
        searched = Range.of(given)
        for arm, trained in confirmed.dropna(subset=name).groupby("arm"):
            value = trained[name].iloc[0]
            share = searched.share_below(value)
            if min(share, 1 - share) <= END:
                ends = Interval(value, searched.low, searched.high, len(trained))
                rows.append(fact(f"best `{name}` of {arm}, at an end of its range", ends, advice=FURTHER))
    return rows


def _noise_fact(noise: "NoiseScale", batch_size: int) -> dict:
    low, high = noise.interval
    if not noise.noise_scale > 0 or (math.isinf(high) and low < batch_size):
        advice = noise.note
    elif low > batch_size:
        advice = LARGER
    else:
        advice = ENOUGH if high < 2 * batch_size else ABOUT
    scale = Interval(noise.noise_scale, low, high, noise.batches)
    return fact("gradient noise scale at the end, images", scale, advice=advice)
