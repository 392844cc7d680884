"""Where training stops being stable: failure as a function of the learning rate, fitted by logistic curves.

Failure need not grow with the rate: the fit is a window, P(failed) = 1 - s(k (x - low)) s(k (high - x)), where x is
the binary logarithm of the rate, s the logistic function and k its steepness. Where rates are coarse and seeds few,
outcomes are often perfectly separated; maximum likelihood then has no finite slope, but the likelihood of the
*position* still says what is known: it lies between two rates. Intervals are the positions whose profile likelihood is
within 1.92 of the best (95 %).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.lab.stats import Interval

DROP = 1.92  # half of the 95 % quantile of chi-squared with one degree of freedom
STEEPNESS = np.array([1.0, 2.0, 4.0, 8.0])  # per doubling of the rate; steeper is not told apart on a grid of doublings
FINENESS = 8  # positions a doubling


@dataclass(frozen=True)
class Window:
    """The stable window of rates. `largest` is the rate at which half of the trainings fail, going up, `smallest`
    going down; infinite or zero where no such rate is needed to explain the outcomes. `deviance_p` is small where a
    window does not describe them."""

    largest: Interval
    smallest: Interval
    band: pd.DataFrame  # lr, share, low, high: P(failed) and its 95 % band
    deviance_p: float


def stable_window(lr: Sequence[float], failed: Sequence[float]) -> Window:
    """Fits the window to single trainings: peak rates, and whether each failed (0 or 1)."""
    x, y = np.log2(np.asarray(lr, float)), np.asarray(failed, float)
    at, ends = np.linspace(x.min() - 1, x.max() + 1, int((np.ptp(x) + 2) * FINENESS) + 1), 1e3
    lows, highs = np.append(at, -ends), np.append(at, ends)
    low, high, k = (a.ravel() for a in np.meshgrid(lows, highs, STEEPNESS, indexing="ij"))
    keep = low < high
    low, high, k = low[keep], high[keep], k[keep]
    likelihood = _log_likelihood(x, y, low, high, k)
    best = likelihood.max()
    inside = likelihood >= best - DROP
    shown = np.linspace(x.min(), x.max(), 200)
    curves = _failure(shown[:, None], low[inside], high[inside], k[inside])
    i = _plainest(likelihood, low, high, best)
    band = pd.DataFrame(
        {
            "lr": 2**shown,
            "share": _failure(shown[:, None], low[i : i + 1], high[i : i + 1], k[i : i + 1])[:, 0],
            "low": curves.min(1),
            "high": curves.max(1),
        }
    )
    n = len(x)
    return Window(
        largest=_rate(high[i], high[inside], x.min() - 1, x.max() + 1, n),
        smallest=_rate(low[i], low[inside], x.min() - 1, x.max() + 1, n),
        band=band,
        deviance_p=_deviance_p(x, y, best),
    )


def _failure(x: np.ndarray, low: np.ndarray, high: np.ndarray, k: np.ndarray) -> np.ndarray:
    return 1 - _logistic(k * (x - low)) * _logistic(k * (high - x))


def _logistic(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(z, -30, 30)))


def _log_likelihood(x, y, low, high, k) -> np.ndarray:
    total = np.zeros(len(low))
    for xi, yi in zip(x, y, strict=True):
        p = np.clip(_failure(xi, low, high, k), 1e-4, 1 - 1e-4)  # one training in ten thousand fails for no reason
        total += np.log(p if yi else 1 - p)
    return total


def _plainest(likelihood: np.ndarray, low: np.ndarray, high: np.ndarray, best: float) -> int:
    """Of equally likely windows the one in the middle, and without a lower end where none is needed."""
    good = np.flatnonzero(likelihood >= best - 0.05)
    open_below = good[low[good] < -100]
    good = open_below if len(open_below) else good
    order = good[np.argsort(high[good], kind="stable")]
    return int(order[len(order) // 2])


def _rate(best: float, inside: np.ndarray, lowest: float, highest: float, n: int) -> Interval:
    """A position as a rate; beyond the rates tried it is 0 or infinite."""

    def rate(position: float) -> float:
        return math.inf if position >= highest else 0.0 if position <= lowest else 2**position

    return Interval(rate(best), rate(inside.min()), rate(inside.max()), n)


def _deviance_p(x: np.ndarray, y: np.ndarray, best: float) -> float:
    """Likelihood-ratio test of the window against a share of its own for every rate."""
    from scipy import stats

    saturated, rates = 0.0, np.unique(x)
    for rate in rates:
        here = y[x == rate]
        share = np.clip(here.mean(), 1e-4, 1 - 1e-4)
        saturated += (here * np.log(share) + (1 - here) * np.log(1 - share)).sum()
    freedom = len(rates) - 3
    return float(stats.chi2.sf(max(0.0, 2 * (saturated - best)), freedom)) if freedom > 0 else math.nan
