"""Where training stops being stable: failure as a function of the peak learning rate, fitted by logistic curves.

Failure need not grow with the rate: the fit is a window, P(failed) = 1 - s(k (x - low)) s(k (high - x)), where x is
the binary logarithm of the rate, s the logistic function and k its steepness. Where rates are coarse and seeds few,
outcomes are often perfectly separated; maximum likelihood then has no finite slope, but the likelihood of the
*position* still says what is known: it lies between two rates. Intervals are the positions whose profile likelihood is
within 1.92 of the best (95 %). All of it is maximised on a grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.lab.statistics.intervals import Interval

DROP = 1.92  # half of the 95 % quantile of chi-squared with one degree of freedom
STEEPNESS = np.array([1.0, 2.0, 4.0, 8.0])  # per doubling of the rate; steeper is not told apart on a grid of doublings
FINENESS = 8  # positions a doubling; of a window, whose rates may be closer than half of one, four between two rates
NEVER = 1e3  # an end that is beyond every rate
LUCK = 1e-4  # the least probability of an outcome: one training in ten thousand fails for no reason of the rate


@dataclass(frozen=True)
class Window:
    """The stable window of rates. `largest` is the rate at which half of the trainings fail, going up, `smallest`
    going down; infinite or zero where no such rate is needed to explain the outcomes."""

    largest: Interval
    smallest: Interval
    band: pd.DataFrame  # lr, share, low, high: P(failed) and its 95 % band
    profile: pd.Series  # of `largest`: the best log-likelihood by the rate's binary logarithm
    deviance_p: float  # small where no window describes the outcomes


def stable_window(lr: Sequence[float], failed: Sequence[float]) -> Window:
    """Fits the window to single trainings: their peak rates, and whether each failed (0 or 1)."""
    x, y = np.log2(np.asarray(lr, float)), np.asarray(failed, float)
    closest = np.diff(np.unique(x), prepend=-math.inf).min()
    at = positions(x, max(FINENESS, math.ceil(4 / closest - 0.5)))
    low, high, k = (a.ravel() for a in np.meshgrid([-NEVER, *at], [*at, NEVER], STEEPNESS, indexing="ij"))
    keep = low < high
    low, high, k = low[keep], high[keep], k[keep]
    likelihood = log_likelihood(lambda rate: failure(rate, low, high, k), x, y)
    inside = likelihood >= likelihood.max() - DROP
    best = _plainest(likelihood, low, high)
    shown = np.linspace(x.min(), x.max(), 200)
    curves = failure(shown[:, None], low[inside], high[inside], k[inside])
    share = failure(shown, low[best], high[best], k[best])
    band = pd.DataFrame({"lr": 2**shown, "share": share, "low": curves.min(1), "high": curves.max(1)})
    return Window(
        largest=as_rate(high[best], high[inside], at, len(x)),
        smallest=as_rate(low[best], low[inside], at, len(x)),
        band=band,
        profile=pd.Series(likelihood).groupby(high).max(),
        deviance_p=_deviance_p(x, y, likelihood.max()),
    )


def shift(a: Window, b: Window) -> tuple[Interval, float]:
    """By how many doublings the largest stable rate of `a` lies above that of `b`, and the p-value of the
    likelihood-ratio test that they are equal. An end beyond the rates that were tried leaves the interval open."""
    (m1, l1, h1), (m2, l2, h2) = _doublings(a.largest), _doublings(b.largest)
    if math.isfinite(m1) and math.isfinite(m2):  # of two independent intervals (Zou and Donner 2008)
        ends = m1 - m2 - math.hypot(m1 - l1, h2 - m2), m1 - m2 + math.hypot(h1 - m1, m2 - l2)
    else:
        ends = (-math.inf if h2 == math.inf else l1 - h2), (math.inf if h1 == math.inf else h1 - l2)
    mean = 0.0 if m1 == m2 else m1 - m2
    between = Interval(mean, *ends, a.largest.n + b.largest.n)
    both = sorted(set(a.profile.index) & set(b.profile.index))
    together = (a.profile[both] + b.profile[both]).max()
    return between, p_of_drop(a.profile.max() + b.profile.max() - together)


def largest_by_seed(cell: pd.DataFrame) -> pd.Series:
    """The binary logarithm of each seed's largest stable rate, from its trainings alone (lr, failed, seed).

    Spearman's and Kaerber's estimate (1908, 1931): where two neighbouring rates differ, their middle counts, up where
    failure begins and down where it ends, so that failure need not grow with the rate. Failures below the lowest rate
    at which the seed trained, where a training is slow, are left out. A seed that failed at all rates is at the
    lowest, one that never did at the highest: bounds.
    """
    largest = {}
    for seed, rows in cell.sort_values("lr").groupby("seed"):
        x, y = np.log2(rows.lr.to_numpy(float)), rows.failed.to_numpy(float)
        if y.all():
            largest[seed] = x[0]
            continue
        x, y = x[y.argmin() :], y[y.argmin() :]
        largest[seed] = float((np.diff(y) * (x[1:] + x[:-1]) / 2).sum() + (1 - y[-1]) * x[-1])
    return pd.Series(largest, dtype=float).rename_axis("seed")


def p_of_drop(drop: float) -> float:
    """The p-value of a likelihood-ratio test of one parameter, from the difference of the log-likelihoods."""
    from scipy import stats

    return float(stats.chi2.sf(max(0.0, 2 * drop), 1))


def positions(x: np.ndarray, fineness: int = FINENESS) -> np.ndarray:
    """The places where an end of the window is looked for, so many a doubling, from one doubling below the lowest to
    one above the highest rate."""
    first, last = math.floor(x.min()) - 1, math.ceil(x.max()) + 1
    return np.linspace(first, last, (last - first) * fineness + 1)


def failure(x, low, high, k):
    """P(failed) at the rate 2^x."""
    return 1 - logistic(k * (x - low)) * logistic(k * (high - x))


def logistic(z):
    return 1 / (1 + np.exp(-np.clip(z, -30, 30)))


def log_likelihood(model, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The sum over trainings; `model` maps a position to an array of probabilities, one a candidate."""
    total = 0.0
    for place in np.unique(x):
        here = y[x == place]
        p = np.clip(model(place), LUCK, 1 - LUCK)
        total = total + here.sum() * np.log(p) + (1 - here).sum() * np.log(1 - p)
    return total


def as_rate(best: float, inside: np.ndarray, at: np.ndarray, n: int) -> Interval:
    """A position as a rate; one at the end of the places that were looked at is 0 or infinite."""

    def rate(position: float) -> float:
        return math.inf if position >= at[-1] else 0.0 if position <= at[0] else float(2**position)

    return Interval(rate(best), rate(inside.min()), rate(inside.max()), n)


def _doublings(rate: Interval) -> tuple[float, float, float]:
    return tuple(math.log2(value) if value > 0 else -math.inf for value in (rate.mean, rate.low, rate.high))


def _plainest(likelihood: np.ndarray, low: np.ndarray, high: np.ndarray) -> int:
    """Of equally likely windows one without ends where none is needed, else the one in the middle."""
    good = np.flatnonzero(likelihood >= likelihood.max() - 0.05)
    for end, never in ((low, -NEVER), (high, NEVER)):
        good = good[end[good] == never] if (end[good] == never).any() else good
    order = good[np.argsort(high[good] + low[good], kind="stable")]
    return int(order[len(order) // 2])


def _deviance_p(x: np.ndarray, y: np.ndarray, best: float) -> float:
    """Likelihood-ratio test of the window against a share of its own for every rate."""
    from scipy import stats

    rates = np.unique(x)
    shares = {rate: y[x == rate].mean() for rate in rates}
    saturated = sum(log_likelihood(lambda _, s=share: np.array(s), x[x == r], y[x == r]) for r, share in shares.items())
    freedom = len(rates) - 3
    return float(stats.chi2.sf(max(0.0, 2 * (saturated - best)), freedom)) if freedom > 0 else math.nan
