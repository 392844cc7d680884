"""Intervals and paired comparisons over seeds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95  # of every interval


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided interval and the number of observations; bounds are NaN where n does not allow
    one."""

    mean: float
    low: float
    high: float
    n: int

    def map(self, function: Callable[[float], float]) -> "Interval":
        """Return the interval on another scale; `function` rises."""
        return Interval(function(self.mean), function(self.low), function(self.high), self.n)

    def __format__(self, spec: str) -> str:
        spec = spec or ".3g"
        if math.isnan(self.low):
            return f"{self.mean:{spec}} (n = {self.n}, no interval)"
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def t_bounds(values: Sequence[float]) -> tuple[float, float]:
    """Return the bounds of `t_interval`, as figures ask for them."""
    interval = t_interval(values)
    return interval.low, interval.high


def points(difference: Interval) -> str:
    """A difference of accuracies in words: `-1.2 points [-2.0, -0.4]`; with two decimals where all is below a point."""
    in_points, spec = difference.map(lambda value: 100 * value), _points_spec(difference)
    if math.isnan(difference.low):
        return f"{in_points.mean:{spec}} points (n = {difference.n}, no interval)"
    return f"{in_points.mean:{spec}} points [{in_points.low:{spec}}, {in_points.high:{spec}}]"


def points_with_ci(difference: Interval) -> str:
    """Write a difference of accuracies for a headline: `-1.2 points (95% CI -2.0 to -0.4, 8 seeds)`."""
    return with_ci(difference.map(lambda value: 100 * value), " points", _points_spec(difference))


def _points_spec(difference: Interval) -> str:
    ends = [v for v in (difference.mean, difference.low, difference.high) if not math.isnan(v)]
    return "+.2f" if ends and max(map(abs, ends)) < 0.01 else "+.1f"


def with_ci(value: Interval, unit: str = "", spec: str = ".2f", counted: str = "seed") -> str:
    """Write an estimate for a headline: `15 times (95% CI 13 to 17, 8 seeds)`.

    Args:
        value: The estimate and its bounds.
        unit: What follows the number, with its space.
        spec: Format of all three numbers.
        counted: What the observations are, in the singular.
    """
    ci = "no interval" if math.isnan(value.low) else f"95% CI {value.low:{spec}} to {value.high:{spec}}"
    return f"{value.mean:{spec}}{unit} ({ci}, {value.n} {counted}{'' if value.n == 1 else 's'})"


def t_interval(values: Sequence[float]) -> Interval:
    """Mean and Student-t interval of independent observations, such as seeds; one observation has no interval."""
    from scipy import stats

    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 2:
        return Interval(float(values.mean()) if n else math.nan, math.nan, math.nan, n)
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n)
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half), n)


def accuracy_interval(values: Sequence[float]) -> Interval:
    """The t-interval of accuracies from 0 to 1, cut off there: of two seeds it may reach beyond."""
    uncut = t_interval(values)
    return Interval(uncut.mean, max(0.0, uncut.low), min(1.0, uncut.high), uncut.n) if uncut.n > 1 else uncut


def best_four_of_five(values: Sequence[float]) -> float:
    """The paper's way to sum up seeds: the mean of the best four of five. Of another number, the worst is left out."""
    values = sorted(values)
    return float(np.mean(values[1:] if len(values) > 1 else values))


def paired_interval(a: Sequence[float], b: Sequence[float]) -> Interval:
    """The t-interval of a - b over pairs that share a seed."""
    if len(a) != len(b):
        raise ValueError(f"pairs need equal lengths, but got {len(a)} and {len(b)}.")
    return t_interval(np.asarray(a, dtype=float) - np.asarray(b, dtype=float))


def share_interval(successes: int, n: int, method: str = "wilson") -> Interval:
    """A share and its interval, Wilson's or the one of the exact test (method "exact", Clopper and Pearson 1934);
    (NaN, 0, 1) without observations."""
    from scipy import stats

    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    bounds = stats.binomtest(int(successes), int(n)).proportion_ci(LEVEL, method=method)
    return Interval(successes / n, float(bounds.low), float(bounds.high), n)


def side(difference: Interval) -> bool | None:
    """True for an interval above zero, False for one below; None where it holds zero, or there is none."""
    return True if difference.low > 0 else False if difference.high < 0 else None


def share_p(successes: int, n: int, share: float = 0.5) -> float:
    """Two-sided p-value of the exact binomial test that a share is `share`; 1 without observations."""
    from scipy import stats

    return float(stats.binomtest(int(successes), int(n), share).pvalue) if n else 1.0


def difference_p(differences: Sequence[float]) -> float:
    """Two-sided p-value that the mean of paired differences is 0; NaN for fewer than two."""
    return _t_test_p(differences, 0.0, "two-sided")


def below_p(differences: Sequence[float], bound: float) -> float:
    """p-value of the non-inferiority test: small where the mean of paired differences is shown to lie below `bound`.

    NaN for fewer than two.
    """
    return _t_test_p(differences, bound, "less")


def within_p(differences: Sequence[float], margin: float) -> float:
    """p-value of the equivalence test (two one-sided tests, Schuirmann 1987).

    Small where the mean of paired differences is shown to lie within +- margin; NaN for fewer than two.
    """
    return max(_t_test_p(differences, -margin, "greater"), _t_test_p(differences, margin, "less"))


def beyond_p(differences: Sequence[float], margin: float) -> float:
    """p-value, two-sided, that the mean of paired differences lies outside +- margin.

    Below 0.05 just where its 95 % t-interval does; NaN for fewer than two.
    """
    values = np.asarray(differences, dtype=float)
    away = values if values.sum() > 0 else -values
    return 2 * min(_t_test_p(away, margin, "greater"), 0.5)


def _t_test_p(values: Sequence[float], mean: float, alternative: str) -> float:
    """p-value of Student's t-test that the mean is `mean`; NaN for fewer than two values.

    Where all values are alike the t-test has no scale to go by, and the sign test takes its place.
    """
    from scipy import stats

    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return math.nan
    if np.ptp(values) > 0:
        return float(stats.ttest_1samp(values, mean, alternative=alternative).pvalue)
    above = int((values > mean).sum())
    signs = int((values != mean).sum())
    return float(stats.binomtest(above, signs, alternative=alternative).pvalue) if signs else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment over a family of tests, in the given order; NaN stays and counts as no test."""
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = largest
    return adjusted
