"""Where training stops being stable: failure over the peak rate, as logistic curves.

Failure may come back at low rates, so the fit is a window:

    P(failed) = 1 - s(k (x - low)) s(k (high - x))

Here x is the binary logarithm of the rate, s the logistic function, and k its steepness. With coarse rates and few
seeds, outcomes are often perfectly separated. Maximum likelihood then has no finite slope. The likelihood of the
*position* still says what is known: the position is between two rates. An interval contains the positions whose profile
likelihood is within 1.92 of the best (95 %). Likelihoods are maximised on a grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.lab.statistics.intervals import Interval

DROP = 1.92  # half of the 95 % quantile of chi-squared with one degree of freedom
STEEPNESS = np.array([1.0, 2.0, 4.0, 8.0])  # per doubling; a grid of doublings cannot separate larger values
FINENESS = 8  # positions per doubling; a window takes at least four between two rates
NEVER = 1e3  # an end beyond every rate
LUCK = 1e-4  # least probability of an outcome: one training in ten thousand fails whatever its rate


@dataclass(frozen=True)
class Window:
    """The stable window of rates.

    Attributes:
        largest: The rate at which half of the trainings fail, going up. Infinite if the outcomes need no such rate.
        smallest: The same rate, going down. Zero if the outcomes need no such rate.
        band: P(failed) and its 95 % band. Columns lr, share, low, high.
        profile: Best log-likelihood by the binary logarithm of `largest`.
        deviance_p: Small if no window describes the outcomes.
    """

    largest: Interval
    smallest: Interval
    band: pd.DataFrame
    profile: pd.Series
    deviance_p: float


def stable_window(lr: Sequence[float], failed: Sequence[float]) -> Window:
    """Fit the stable window to single trainings.

    Args:
        lr: Peak learning rates.
        failed: Whether each training failed, 0 or 1.
    """
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
    """Compare the largest stable rates of two windows.

    An end beyond the rates of the trainings leaves the interval open.

    Returns:
        By how many doublings the rate of `a` is above that of `b`, and the p-value of the likelihood-ratio test that
        they are equal.
    """
    (m1, l1, h1), (m2, l2, h2) = _doublings(a.largest), _doublings(b.largest)
    if math.isfinite(m1) and math.isfinite(m2):  # difference of two independent estimates (Zou and Donner 2008)
        ends = m1 - m2 - math.hypot(m1 - l1, h2 - m2), m1 - m2 + math.hypot(h1 - m1, m2 - l2)
    else:
        ends = (-math.inf if h2 == math.inf else l1 - h2), (math.inf if h1 == math.inf else h1 - l2)
    mean = 0.0 if m1 == m2 else m1 - m2
    between = Interval(mean, *ends, a.largest.n + b.largest.n)
    both = sorted(set(a.profile.index) & set(b.profile.index))
    together = (a.profile[both] + b.profile[both]).max()
    return between, p_of_drop(a.profile.max() + b.profile.max() - together)


def largest_by_seed(cell: pd.DataFrame) -> pd.Series:
    """Estimate each seed's largest stable rate from its own trainings.

    This is Spearman's and Kaerber's estimate (1908, 1931). Where two neighbouring rates differ, their middle counts: up
    where failure begins, down where it ends. So failure need not grow with the rate. Failures below the lowest rate at
    which the seed trained are left out, because there a training is slow. A seed that failed at all rates gets the
    lowest rate, a seed that never failed the highest. Both are bounds.

    Args:
        cell: Columns lr, failed, seed.

    Returns:
        By seed the binary logarithm of the rate.
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
    """Return the p-value of a likelihood-ratio test of one parameter.

    Args:
        drop: Difference of the log-likelihoods.
    """
    from scipy import stats

    return float(stats.chi2.sf(max(0.0, 2 * drop), 1))


def positions(x: np.ndarray, fineness: int = FINENESS) -> np.ndarray:
    """Return the places where an end of the window may lie, as binary logarithms.

    Args:
        x: Binary logarithms of the rates. The places go from one doubling below the lowest to one above the highest.
        fineness: Places per doubling.
    """
    first, last = math.floor(x.min()) - 1, math.ceil(x.max()) + 1
    return np.linspace(first, last, (last - first) * fineness + 1)


def failure(x, low, high, k):
    """Return P(failed) at the rate 2^x."""
    return 1 - logistic(k * (x - low)) * logistic(k * (high - x))


def logistic(z):
    """Return the logistic function of z."""
    return 1 / (1 + np.exp(-np.clip(z, -30, 30)))


def log_likelihood(model, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the sum of log-likelihoods over trainings, one value per candidate.

    Args:
        model: Maps a position to an array of probabilities, one per candidate.
        x: Binary logarithms of the rates.
        y: Outcomes, 0 or 1.
    """
    total = 0.0
    for place in np.unique(x):
        outcomes = y[x == place]
        p = np.clip(model(place), LUCK, 1 - LUCK)
        total = total + outcomes.sum() * np.log(p) + (1 - outcomes).sum() * np.log(1 - p)
    return total


def as_rate(best: float, inside: np.ndarray, at: np.ndarray, n: int) -> Interval:
    """Convert a position and its bounds to rates.

    The first of the places counts as rate 0, the last as infinite.
    """

    def rate(position: float) -> float:
        return math.inf if position >= at[-1] else 0.0 if position <= at[0] else float(2**position)

    return Interval(rate(best), rate(inside.min()), rate(inside.max()), n)


def _doublings(rate: Interval) -> tuple[float, float, float]:
    return tuple(math.log2(value) if value > 0 else -math.inf for value in (rate.mean, rate.low, rate.high))


def _plainest(likelihood: np.ndarray, low: np.ndarray, high: np.ndarray) -> int:
    """Choose among equally likely windows: one without unneeded ends, otherwise the middle one."""
    good = np.flatnonzero(likelihood >= likelihood.max() - 0.05)
    for end, never in ((low, -NEVER), (high, NEVER)):
        good = good[end[good] == never] if (end[good] == never).any() else good
    order = good[np.argsort(high[good] + low[good], kind="stable")]
    return int(order[len(order) // 2])


def _deviance_p(x: np.ndarray, y: np.ndarray, best: float) -> float:
    """Return the p-value of the window against a model with one failed share per rate.

    This is a likelihood-ratio test.
    """
    from scipy import stats

    rates = np.unique(x)
    shares = {rate: y[x == rate].mean() for rate in rates}
    saturated = sum(log_likelihood(lambda _, s=share: np.array(s), x[x == r], y[x == r]) for r, share in shares.items())
    freedom = len(rates) - 3
    return float(stats.chi2.sf(max(0.0, 2 * (saturated - best)), freedom)) if freedom > 0 else math.nan
