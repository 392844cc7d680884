"""Claim 11: rate and threshold of a narrow network are also right for a wide one.

Source: Yang et al. 2022 for the meaning of transfer. The NFNet paper keeps both values over its sizes F0 to F6.

Every width searches the same grid of rates and thresholds. The largest width is held out. Its rate is predicted from
the best rates of all other widths, by a straight line of log rate over log width. Its threshold is the median of
theirs.

Contrast, written down before the confirmation: at the predicted point, the held-out width loses less than 0.5 points of
test accuracy against every rival. All points train with fresh seeds. The rivals are:

- half and twice the rate
- the threshold one step of the grid down and up
- its own best point, if that is another point

Each is a non-inferiority test, and all must pass.

Tables:
    screened: Columns width, lr, clip, seed, val_acc, failed.
    table: Columns arm, seed, lr, clip, test_acc.
"""

import dataclasses

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, SubFigure

from workbench.claims.claim import Claim
from workbench.lab.statistics.effects import compare_arms, details, effect_of
from workbench.lab.statistics.intervals import below_p, beyond_p, points_with_ci
from workbench.lab.statistics.panels import draw_differences
from workbench.lab.statistics.rates import by_seed
from workbench.lab.statistics.undecided import nothing_to_compare
from workbench.lab.statistics.verdict import Precondition, Verdict

CLAIM = Claim(
    "Rate and threshold can be taken from narrower networks",
    precondition="the best rate of every width lies inside the rates tried",
    number=11,
    tables=("screened", "table"),
)

MARGIN = 0.005  # of test accuracy
FACTOR = 2.0  # a predicted rate within this factor counts as right
PREDICTED, HELD_OUT_BEST = "predicted", "own best"


def best_points(screened: pd.DataFrame) -> pd.DataFrame:
    """Return by width the point of the best mean validation accuracy.

    Returns:
        Columns width, lr, clip, val_acc.
    """
    means = screened.groupby(["width", "lr", "clip"]).val_acc.mean().reset_index()
    return means.loc[means.groupby("width").val_acc.idxmax()].sort_values("width").reset_index(drop=True)


def predicted(screened: pd.DataFrame) -> dict[str, float]:
    """Predict rate and threshold of the largest width from the others.

    Returns:
        The nearest grid values as {lr, clip}.
    """
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
    """Return the value of the grid that is nearest by ratio."""
    grid = np.array(sorted(grid.unique()))
    return float(grid[np.abs(np.log(grid / value)).argmin()])


def points_to_confirm(screened: pd.DataFrame) -> pd.DataFrame:
    """Return the predicted point of the largest width and its rivals.

    Returns:
        Columns arm, lr, clip, width.
    """
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
    """List by width which best values are the first or last tried.

    A better value may lie beyond.
    """
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
    """Measure what the predicted point loses against each rival.

    Returns:
        The rows of `compare_arms`, where the difference is that loss. `small_p` tests that it is below the margin,
        `large_p` that it is beyond the margin.
    """
    values = by_seed(table)
    loss = values.sub(values[PREDICTED], axis=0).drop(columns=PREDICTED)
    small = {arm: below_p(loss[arm].dropna(), MARGIN) for arm in loss}
    large = {arm: beyond_p(loss[arm].dropna(), MARGIN) if loss[arm].mean() > 0 else 1.0 for arm in loss}
    comparison = compare_arms(table, PREDICTED, settings=("lr", "clip"))
    return comparison.assign(small_p=comparison.arm.map(small), large_p=comparison.arm.map(large))


def judge(screened: pd.DataFrame, table: pd.DataFrame) -> Verdict:
    """Judge whether the held-out width loses nothing at the predicted rate and threshold."""
    if (undecided := nothing_to_compare(table, *dict.fromkeys([PREDICTED, *table.arm]), tried=screened)) is not None:
        return undecided
    lost = losses(table)
    rivals = lost[lost.arm != PREDICTED]
    small_p, large_p = rivals.small_p.max(skipna=False), min(1.0, len(rivals) * rivals.large_p.min())
    holds = True if small_p < 0.05 else False if large_p < 0.05 else None
    rival = rivals.loc[rivals.difference.idxmax(), "arm"]
    name = f"test accuracy of the best rival ({rival}) minus that at the predicted point"
    contrast = effect_of(name, table, PREDICTED, rival)
    effect = dataclasses.replace(contrast, p=min(small_p, large_p))
    relation = {True: "loses less", False: "loses more", None: "is not shown to lose less"}[holds]
    headline = f"The predicted point {relation} than the margin to its best rival: {points_with_ci(effect.value)}."
    return Verdict(holds, effect, headline, _details(screened, lost)).on(_rates_inside(screened))


def _rates_inside(screened: pd.DataFrame) -> Precondition:
    best = best_points(screened)
    inside = best.lr.between(screened.lr.min(), screened.lr.max(), inclusive="neither")
    return Precondition(CLAIM.precondition, f"{inside.sum()} of {len(inside)} widths", bool(inside.all()))


def _details(screened: pd.DataFrame, lost: pd.DataFrame) -> pd.DataFrame:
    """One row per width with its best point, and one per point that the largest width confirmed.

    `points` is the point's accuracy minus that of the predicted point. `rate_over_best` is the predicted rate over the
    best rate of that width.
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
    """Draw the screening of all widths, and the rivals compared with the predicted point.

    The upper row has validation accuracy over the rate, one panel per threshold and one line per width. Crosses mark
    failed seeds. The lower panel has test accuracies of the largest width, paired by seed.
    """
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
