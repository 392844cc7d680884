"""Intervals and paired comparisons over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided interval and the number of observations; bounds are NaN where n does not allow
    one."""

    mean: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        spec = spec or ".3g"
        if math.isnan(self.low):
            return f"{self.mean:{spec}} (n = {self.n}, no interval)"
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean and Student-t interval of independent observations, such as seeds; one observation has no interval."""
    from scipy import stats

    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 2:
        return Interval(float(values.mean()) if n else math.nan, math.nan, math.nan, n)
    half = stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n)
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half), n)


def paired_interval(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Interval:
    """The t-interval of a - b over pairs that share a seed."""
    if len(a) != len(b):
        raise ValueError(f"pairs need equal lengths, but got {len(a)} and {len(b)}.")
    return t_interval(np.asarray(a, dtype=float) - np.asarray(b, dtype=float), level)


def share_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """A share and its Wilson interval; (NaN, 0, 1) without observations."""
    from scipy import stats

    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    found = stats.binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return Interval(successes / n, float(found.low), float(found.high), n)
