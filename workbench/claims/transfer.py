"""Claim 11: do the best rate and threshold move over width? A narrow network's could then stand for a wide one's.

Source: Yang et al. 2022 for what is meant by transfer; the NFNet paper keeps both over its sizes F0 to F6. Every width
searches the same grid of rates and thresholds. From all widths but the largest the best rate is extrapolated, log rate
over log width as a straight line, to the largest, which is held out; the threshold is the median of theirs. The
contrast, written down before the confirmation: at the predicted point the held-out width loses less than 0.5 points of
test accuracy against every rival, over fresh seeds: the neighbours, with half and twice the rate and with the threshold
a step of the grid down and up, and its own best point, where that is another. Each is a non-inferiority test, and all
must pass. Tables: `screened` (width, lr, clip, seed, val_acc, failed) and `table` (arm, seed, lr, clip, test_acc).
"""

import dataclasses

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, SubFigure

from workbench.claims.claim import Claim
from workbench.lab.statistics.effects import beside, details, effect_of
from workbench.lab.statistics.intervals import below_p, beyond_p, points_with_ci
from workbench.lab.statistics.panels import draw_differences
from workbench.lab.statistics.rates import by_seed
from workbench.lab.statistics.verdict import Verdict

CLAIM = Claim("Rate and threshold can be taken from narrower networks", number=11, tables=("screened", "table"))

MARGIN = 0.005  # of test accuracy
FACTOR = 2.0  # within which a predicted rate counts as right
PREDICTED, HELD_OUT_BEST = "predicted", "own best"


def best_points(screened: pd.DataFrame) -> pd.DataFrame:
    """One row a width: the rate and threshold of the best mean validation accuracy, and that accuracy."""
    means = screened.groupby(["width", "lr", "clip"]).val_acc.mean().reset_index()
    return means.loc[means.groupby("width").val_acc.idxmax()].sort_values("width").reset_index(drop=True)


def predicted(screened: pd.DataFrame) -> dict[str, float]:
    """Rate and threshold for the largest width, from the others: {lr, clip}, the nearest on the grid searched."""
    best = best_points(screened)
    known, width = best[best.width < best.width.max()], best.width.max()
    if len(known) > 1:
        slope, height = np.polyfit(np.log(known.width), np.log(known.lr), 1)
        lr = float(np.exp(height + slope * np.log(width)))
    else:
        lr = float(known.lr.iloc[0])
    clip = float(np.exp(np.log(known["clip"]).median()))
    return {"lr": nearest(lr, screened.lr), "clip": nearest(clip, screened["clip"])}


def nearest(value: float, grid: pd.Series) -> float:
    """The value of the grid that is nearest by ratio."""
    grid = np.array(sorted(grid.unique()))
    return float(grid[np.abs(np.log(grid / value)).argmin()])


def points_to_confirm(screened: pd.DataFrame) -> pd.DataFrame:
    """The predicted point of the largest width and its rivals: arm, lr, clip, width."""
    guess, best, clips = predicted(screened), best_points(screened).iloc[-1], sorted(screened["clip"].unique())
    step = clips[1] / clips[0] if len(clips) > 1 else FACTOR
    lr, clip = guess["lr"], guess["clip"]
    named = {
        PREDICTED: (lr, clip),
        "half the rate": (lr / FACTOR, clip),
        "twice the rate": (lr * FACTOR, clip),
        f"threshold / {step:g}": (lr, clip / step),
        f"threshold x {step:g}": (lr, clip * step),
    }
    if (best.lr, best["clip"]) not in named.values():
        named[HELD_OUT_BEST] = (best.lr, best["clip"])
    rows = [{"arm": arm, "lr": float(f"{a:.4g}"), "clip": float(f"{b:.4g}")} for arm, (a, b) in named.items()]
    return pd.DataFrame(rows).assign(width=best.width)


def _edges(screened: pd.DataFrame, best: pd.DataFrame) -> list[str]:
    """By width which of its best values is the first or last tried, so that a better one may lie beyond."""
    ends = {
        what: {screened[name].min(), screened[name].max()} for name, what in (("lr", "rate"), ("clip", "threshold"))
    }
    return [
        ", ".join(
            what for what, value in (("rate", lr), ("threshold", clip)) if len(ends[what]) > 1 and value in ends[what]
        )
        for lr, clip in zip(best.lr, best["clip"], strict=True)
    ]


def losses(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `beside`, whose difference is what the predicted point loses against each rival, with small_p of a
    loss below the margin and large_p of one beyond it."""
    values = by_seed(table)
    loss = values.sub(values[PREDICTED], axis=0).drop(columns=PREDICTED)
    small = {arm: below_p(loss[arm].dropna(), MARGIN) for arm in loss}
    large = {arm: beyond_p(loss[arm].dropna(), MARGIN) if loss[arm].mean() > 0 else 1.0 for arm in loss}
    comparison = beside(table, PREDICTED, settings=("lr", "clip"))
    return comparison.assign(small_p=comparison.arm.map(small), large_p=comparison.arm.map(large))


def judge(screened: pd.DataFrame, table: pd.DataFrame) -> Verdict:
    """Does the held-out width lose nothing at the rate and threshold that the narrow ones predict?"""
    lost = losses(table)
    rivals = lost[lost.arm != PREDICTED]
    small_p, large_p = rivals.small_p.max(), min(1.0, len(rivals) * rivals.large_p.min())
    holds = True if small_p < 0.05 else False if large_p < 0.05 else None
    rival = rivals.loc[rivals.difference.idxmax(), "arm"]
    name = f"test accuracy of the best rival ({rival}) minus at the predicted point"
    contrast = effect_of(name, table, PREDICTED, rival)
    effect = dataclasses.replace(contrast, p=min(small_p, large_p))
    relation = {True: "loses less", False: "loses more", None: "is not shown to lose less"}[holds]
    headline = f"The predicted point {relation} than the margin to its best rival: {points_with_ci(effect.value)}."
    return Verdict(holds, effect, headline, _details(screened, lost))


def _details(screened: pd.DataFrame, lost: pd.DataFrame) -> pd.DataFrame:
    """One row per width, with its best point, and one per point that the largest width confirmed.

    `points` is its accuracy minus that of the predicted point, `rate_over_best` the predicted rate over the best of
    that width.
    """
    best = best_points(screened)
    widths = pd.DataFrame({"point": [f"best at width {width:g}" for width in best.width], "lr": best.lr,
                           "clip": best["clip"], "at_edge": _edges(screened, best)})  # fmt: skip
    widths.loc[len(best) - 1, "rate_over_best"] = predicted(screened)["lr"] / best.lr.iloc[-1]
    confirmed = (
        details(lost, "lr", "clip", "small_p", "large_p").drop(columns="p_holm").rename(columns={"arm": "point"})
    )
    return pd.concat([confirmed, widths], ignore_index=True).fillna({"at_edge": ""})


def figure(screened: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Above: validation accuracy over the rate, a panel a threshold, a line a width; crosses where a seed failed.
    Below: test accuracy of the rivals beside the predicted point of the largest width, paired by seed."""
    from workbench.lab import plots

    clips, arms = sorted(screened["clip"].unique()), list(dict.fromkeys(table.arm))
    figure, (above, below) = plots.stacked([4.2, 1.1 + 0.36 * len(arms)], width=1.5 + 3.3 * len(clips))
    _screening(above, screened, clips)
    draw_differences(below.subplots(), table, PREDICTED, [arm for arm in arms if arm != PREDICTED])
    plots.legend_outside(below)
    return figure


def _screening(figure: SubFigure, screened: pd.DataFrame, clips: list[float]) -> None:
    from workbench.lab import plots

    looks = plots.ordered_looks(sorted(screened.width.unique()))
    names = {width: f"width {width:g}" for width in looks}
    guess, best = predicted(screened), best_points(screened).iloc[-1]
    marks = [(guess, "--", "predicted"), (best, ":", "its own best")]
    if (guess["lr"], guess["clip"]) == (best.lr, best["clip"]):
        marks = [(guess, "--", "predicted, and its own best")]
    axes = figure.subplots(1, len(clips), sharey=True, squeeze=False)[0]
    for ax, clip in zip(axes, clips, strict=True):
        rows = screened[screened["clip"] == clip]
        plots.over_rate(ax, rows, "width", looks, names, bounds=lambda values: (min(values), max(values)))
        for point, style, name in marks:
            if point["clip"] == clip:
                ax.axvline(point["lr"], color="0.4", ls=style, lw=1, label=f"{list(names.values())[-1]}, {name}")
        ax.set(title=f"threshold {clip:g}")
    plots.legend_outside(figure)
