"""Claim 11: do the best rate and threshold move over width? A narrow network's could then stand for a wide one's.

Source: Yang et al. 2022 for what is meant by transfer; the NFNet paper keeps both over its sizes F0 to F6. Every width
searches the same grid of rates and thresholds. From all widths but the largest the best rate is extrapolated, log rate
over log width as a straight line, to the largest, which is held out; the threshold is the median of theirs. The
contrast, written down before the confirmation: at the predicted point the held-out width loses less than 0.5 points of
test accuracy against its own best, over fresh seeds (a non-inferiority test). Tables: `screened` (width, lr, clip,
seed, val_acc, failed) and `table` (arm: predicted or own; seed, lr, clip, test_acc).
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.lab.evidence.protocol import by_seed
from workbench.lab.stats import below_p, beyond_p, paired_interval, t_interval
from workbench.lab.verdicts import Verdict

MARGIN = 0.005  # of test accuracy
FACTOR = 2.0  # within which a predicted rate counts as right


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


def verdict(screened: pd.DataFrame, table: pd.DataFrame) -> Verdict:
    """Does the held-out width lose nothing at the rate and threshold that the narrow ones predict?"""
    best, guess = best_points(screened), predicted(screened)
    own = best.iloc[-1]
    pairs = by_seed(table).dropna()
    if guess["lr"] == own.lr and guess["clip"] == own["clip"]:
        loss, small_p, large_p = paired_interval(pairs.iloc[:, 0], pairs.iloc[:, 0]), 0.0, 1.0  # one point: no loss
    else:
        difference = pairs["own"] - pairs["predicted"]
        loss, small_p, large_p = t_interval(difference), below_p(difference, MARGIN), beyond_p(difference, MARGIN)
    holds = True if small_p < 0.05 else False if large_p < 0.05 else None
    ratio = guess["lr"] / own.lr
    within = "within" if 1 / FACTOR <= ratio <= FACTOR else "not within"
    each = ", ".join(f"{row.width:g}: {row.lr:.3g} and {row['clip']:g}" for _, row in best.iterrows())
    relation = {True: "loses less than", False: "loses more than", None: "is not shown to lose less than"}[holds]
    sentence = (
        f"Best rate and threshold by width: {each}. For width {own.width:g} the narrower predict {guess['lr']:.3g} "
        f"and {guess['clip']:g}, {within} a factor of {FACTOR:g} of its own rate; with them it {relation} {MARGIN:.1%} "
        f"of test accuracy ({loss:.2%})."
    )
    effect_name, p = "test accuracy at its own point minus at the predicted one", min(small_p, large_p)
    return Verdict(sentence, holds, effect_name, loss, p=p, in_points=True)


def figure(screened: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Validation accuracy over the rate, a panel a threshold, a line a width; crosses where a seed failed."""
    import matplotlib.pyplot as plt

    from workbench.lab import plots

    plots.style()
    clips, widths = sorted(screened["clip"].unique()), sorted(screened.width.unique())
    size = (1.5 + 3.3 * len(clips), 3.8)
    figure, axes = plt.subplots(1, len(clips), figsize=size, layout="constrained", sharey=True, squeeze=False)
    guess, own = predicted(screened), best_points(screened).iloc[-1]
    for ax, clip in zip(axes[0], clips, strict=True):
        for width, colour in zip(widths, plots.graded(len(widths)), strict=True):
            over = screened[(screened["clip"] == clip) & (screened.width == width)].groupby("lr")
            mean = over.val_acc.mean()
            spread = [mean - over.val_acc.min(), over.val_acc.max() - mean]
            look = {"ms": 4, "lw": 1.1, "capsize": 2, "color": colour, "label": f"width {width:g}"}
            ax.errorbar(mean.index, mean, spread, fmt="o-", **look)
            failed = over.failed.max() == 1
            ax.plot(mean.index[failed], mean[failed], "x", color="#d55e00", ms=9)
        for point, style, name in ((guess, "--", "predicted"), (own, ":", "its own best")):
            if point["clip"] == clip:
                ax.axvline(point["lr"], color="0.4", ls=style, lw=1, label=f"width {widths[-1]:g}, {name}")
        ax.set(xscale="log", xlabel="peak learning rate", title=f"threshold {clip:g}")
        plots.plain_log_ticks(ax.xaxis)
    axes[0, 0].set_ylabel("validation accuracy")
    axes[0, 0].plot([], [], "x", color="#d55e00", ms=8, ls="none", label="a seed failed")
    handles = {}
    for ax in axes[0]:
        handles |= dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles, frameon=False, ncols=4, loc="outside lower center")
    return figure
