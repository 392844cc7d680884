"""Question: is a network without BatchNorm as good on your images as with BatchNorm?

This is no claim of the paper, but a way to use its claims. Each of the two networks trains at its own best rate.

Contrast: test accuracy without BatchNorm minus with, paired by seed, with a margin of half a point.

Tables:
    trials: One row per trial of the search. Columns arm (NF+AGC, BN), state, outcome, clip, lr, val_acc, failed.
    confirmed: The best of each arm on fresh seeds. Columns arm, seed, test_acc, outcome, failed, lr, clip, batch_size,
        weights.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.failure_line import collapsed
from workbench.lab.statistics.intervals import (
    Interval,
    accuracy_interval,
    paired_interval,
    points_with_ci,
    t_interval,
    with_ci,
)
from workbench.lab.statistics.preconditions import none_fails
from workbench.lab.statistics.undecided import nothing_to_compare
from workbench.lab.statistics.verdict import Effect, Verdict, fact
from workbench.lab.studies.parameters import Range

if TYPE_CHECKING:  # reading the claims needs no torch
    from workbench.probes.noise import NoiseScale

CLAIM = Claim(
    "A network is as good without BatchNorm as with it, each at its own best rate",
    precondition="no training with BatchNorm fails",
    tables=("trials", "confirmed"),
)

NF, BN = "NF+AGC", "BN"  # the arms, as `user_network.arms` calls them
MARGIN = 0.005  # accuracy that the network without BatchNorm may lose and still count as equally good
GOOD = 0.02  # validation accuracy below the best that still counts as good
END = 0.1  # share of a range, on its scale, that counts as its end
LONGER = "some trainings end no better than guessing: lower the rates or train longer"
FURTHER = "a better value may lie outside the range: widen it"
LARGER, ENOUGH = "larger batches still save steps", "larger batches buy little"
ABOUT = "this batch is about where larger ones buy little"
NAMES = {NF: "without BatchNorm, AGC", BN: "with BatchNorm"}


def figure(trials: pd.DataFrame, confirmed: pd.DataFrame) -> Figure:
    """Draw the trials, the accuracy at each rate, and the best of both on fresh seeds.

    Intervals are at 95 %. The columns are those of `judge`.
    """
    from workbench.lab import plots

    figure, (search, rates, fresh) = plots.panels(1, 3, (12, 4), width_ratios=[1.25, 1, 0.8])
    agc = trials[trials.arm == NF]
    plots.accuracy_map(search, agc.lr, agc["clip"], agc.val_acc, **_ends(agc))
    plots.rate_axis(search)
    plots.log_axis(search.yaxis, "clipping threshold")
    search.set(title="trials")

    for arm in _arms(trials):
        rows = trials[trials.arm == arm]
        plots.trials(rates, rows.lr, rows.val_acc, plots.ARM_LOOKS[arm], NAMES[arm], **_ends(rows))
    plots.rate_axis(rates)
    plots.accuracy_axis(rates, "validation")
    rates.set(title="each at its rates")

    for i, arm in enumerate(_arms(confirmed)):
        rows = confirmed[confirmed.arm == arm]
        look, mean = plots.ARM_LOOKS[arm], t_interval(rows.test_acc)
        plots.seeds(fresh, i, rows.test_acc, rows.failed, mean, look, NAMES[arm], collapsed=collapsed(rows))
    short = [NAMES[arm].partition(",")[0].replace(" ", "\n") for arm in _arms(confirmed)]
    plots.name_axis(fresh.xaxis, short)
    plots.accuracy_axis(fresh, "test")
    fresh.set(title="best of each, fresh seeds")
    plots.legend_outside(figure, columns=6)
    return figure


def _ends(trials: pd.DataFrame) -> dict[str, pd.Series]:
    """Return which trials failed, which of them collapsed, and which were pruned."""
    return {"failed": trials.failed, "collapsed": collapsed(trials), "pruned": trials.state == "PRUNED"}


def _arms(table: pd.DataFrame) -> list[str]:
    return [arm for arm in NAMES if arm in set(table.arm)] if len(table) else []


def judge(
    trials: pd.DataFrame,
    confirmed: pd.DataFrame,
    noise: "NoiseScale | None" = None,
    ranges: Mapping[str, float | dict | Range] | None = None,
) -> Verdict:
    """Judge whether the network without BatchNorm is as good as with it, within the margin.

    Args:
        trials: Columns arm, state, outcome, clip, lr, val_acc.
        confirmed: Columns arm, seed, test_acc, outcome, failed, lr, clip, batch_size, weights. Each arm trains at its
            own best rate. Seeds are paired.
        noise: The gradient noise scale at the end of training. None leaves it out.
        ranges: Where `lr` and `clip` were searched. The table then lists best values near an end of their range.
    """
    if (undecided := nothing_to_compare(confirmed, *dict.fromkeys([NF, *_arms(confirmed)]), tried=trials)) is not None:
        return undecided
    values = confirmed.pivot_table(index="seed", columns="arm", values="test_acc")
    if BN in values:
        difference = paired_interval(values[NF], values[BN])
        effect = Effect("test accuracy without BatchNorm minus with", difference, in_points=True)
        holds = True if difference.low > -MARGIN else False if difference.high < -MARGIN else None
        relation = {True: "as good as", False: "worse than", None: "not shown to be as good as"}[holds]
        headline = f"Without BatchNorm your network is {relation} with BatchNorm: {points_with_ci(difference)}."
    else:
        effect, holds = Effect("test accuracy without BatchNorm", t_interval(values[NF])), None
        accuracy = with_ci(effect.value.map(lambda value: 100 * value), "% of the test images", ".1f")
        headline = f"Your network without BatchNorm gets {accuracy}, but there is no control for comparison."
    rows = [*_accuracies(confirmed), fact(*_good_thresholds(trials)), *_values_at_an_end(confirmed, ranges or {})]
    rows += [] if noise is None else [_noise_fact(noise, int(confirmed.batch_size.iloc[0]))]
    verdict = Verdict(holds, effect, headline, pd.DataFrame(rows).fillna({"started_from": "", "advice": ""}))
    return verdict.on(none_fails(CLAIM.precondition, confirmed, BN))


def _accuracies(confirmed: pd.DataFrame) -> list[dict]:
    """One row per arm: the test accuracy of its best point.

    `collapsed` counts failures without divergence.
    """
    rows = []
    for arm in _arms(confirmed):
        trained = confirmed[confirmed.arm == arm]
        first, collapsed = trained.iloc[0], int((trained.outcome == "collapsed").sum())
        rows.append(
            fact(
                f"test accuracy {NAMES[arm]}", accuracy_interval(trained.test_acc), lr=first.lr, clip=first["clip"],
                batch_size=first.batch_size, failed=int(trained.failed.sum()), collapsed=collapsed,
                started_from="" if pd.isna(first.weights) else Path(first.weights).name,
                advice=LONGER if collapsed else "",
            )
        )  # fmt: skip
    return rows


def _good_thresholds(trials: pd.DataFrame) -> tuple[str, Interval]:
    done = trials[(trials.arm == NF) & (trials.state == "COMPLETE") & (trials.outcome == "complete")]
    good = done[done.val_acc >= done.val_acc.max() - GOOD]["clip"]
    name = f"thresholds of {len(good)} of {int((trials.arm == NF).sum())} trials, within {GOOD:.0%} of the best"
    return name, Interval(math.nan, good.min(), good.max(), len(good))


def _values_at_an_end(confirmed: pd.DataFrame, ranges: Mapping[str, float | dict | Range]) -> list[dict]:
    """List the best values in the first or last tenth of their range, with the range as bounds."""
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
