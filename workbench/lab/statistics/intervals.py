"""Intervals and paired comparisons over seeds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95  # confidence level of every interval


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided interval.

    Attributes:
        mean: The estimate.
        low: Lower bound. NaN if n is too small for an interval.
        high: Upper bound. NaN if n is too small for an interval.
        n: Number of observations.
    """

    mean: float
    low: float
    high: float
    n: int

    def map(self, function: Callable[[float], float]) -> "Interval":
        """Return the interval on another scale. `function` must be increasing."""
        return Interval(function(self.mean), function(self.low), function(self.high), self.n)

    def __format__(self, spec: str) -> str:
        spec = spec or ".3g"
        if math.isnan(self.mean):
            return "no estimate"
        if math.isnan(self.low):
            return f"{self.mean:{spec}} (n = {self.n}, no interval)"
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def t_bounds(values: Sequence[float]) -> tuple[float, float]:
    """Return the two bounds of `t_interval`, in the form that figures need."""
    interval = t_interval(values)
    return interval.low, interval.high


def points(difference: Interval) -> str:
    """Write a difference of accuracies: `-1.2 points [-2.0, -0.4]`.

    The numbers have two decimals if all of them are below one point.
    """
    in_points, spec = difference.map(lambda value: 100 * value), _points_spec(difference)
    if math.isnan(difference.mean):
        return "no estimate"
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
    counts = f"{value.n} {counted}{'' if value.n == 1 else 's'}"
    if math.isnan(value.mean):
        return f"no estimate ({counts})"
    ci = "no interval" if math.isnan(value.low) else f"95% CI {value.low:{spec}} to {value.high:{spec}}"
    return f"{value.mean:{spec}}{unit} ({ci}, {counts})"


def t_interval(values: Sequence[float]) -> Interval:
    """Return the mean and Student-t interval of independent observations, such as seeds.

    A single observation has no interval.
    """
    from scipy import stats

    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 2:
        return Interval(float(values.mean()) if n else math.nan, math.nan, math.nan, n)
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n)
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half), n)


def accuracy_interval(values: Sequence[float]) -> Interval:
    """Return the t-interval of accuracies, cut off at 0 and 1.

    With two seeds the uncut interval may reach beyond them.
    """
    uncut = t_interval(values)
    return Interval(uncut.mean, max(0.0, uncut.low), min(1.0, uncut.high), uncut.n) if uncut.n > 1 else uncut


def best_four_of_five(values: Sequence[float]) -> float:
    """Return the mean of the best four of five seeds, as the paper does.

    With another number of seeds, the mean leaves out the worst.
    """
    values = sorted(values)
    return float(np.mean(values[1:] if len(values) > 1 else values))


def paired_interval(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Return the t-interval of a - b over pairs that share a seed.

    Raises:
        ValueError: If `a` and `b` have different lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"`a` and `b` must have equal lengths, got {len(a)} and {len(b)}. Pass pairs of seeds.")
    return t_interval(np.asarray(a, dtype=float) - np.asarray(b, dtype=float))


def share_interval(successes: int, n: int, method: str = "wilson") -> Interval:
    """Return a share and its interval. Without observations it is (NaN, 0, 1).

    Args:
        successes: Number of successes.
        n: Number of observations.
        method: "wilson", or "exact" for the interval of the exact test (Clopper and Pearson 1934).
    """
    from scipy import stats

    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    bounds = stats.binomtest(int(successes), int(n)).proportion_ci(LEVEL, method=method)
    return Interval(successes / n, float(bounds.low), float(bounds.high), n)


def side(difference: Interval) -> bool | None:
    """Return True for an interval above zero, False for one below, otherwise None.

    None also means that there is no interval.
    """
    return True if difference.low > 0 else False if difference.high < 0 else None


def share_p(successes: int, n: int, share: float = 0.5) -> float:
    """Return the two-sided p-value of the exact binomial test that a share is `share`.

    It is 1 without observations.
    """
    from scipy import stats

    return float(stats.binomtest(int(successes), int(n), share).pvalue) if n else 1.0


def difference_p(differences: Sequence[float]) -> float:
    """Return the two-sided p-value that the mean of paired differences is 0.

    NaN for fewer than two differences.
    """
    return _t_test_p(differences, 0.0, "two-sided")


def below_p(differences: Sequence[float], bound: float) -> float:
    """Return the p-value of the non-inferiority test.

    It is small if the mean of paired differences is shown to be below `bound`. NaN for fewer than two differences.
    """
    return _t_test_p(differences, bound, "less")


def within_p(differences: Sequence[float], margin: float) -> float:
    """Return the p-value of the equivalence test (two one-sided tests, Schuirmann 1987).

    It is small if the mean of paired differences is shown to be within +- margin. NaN for fewer than two differences.
    """
    return max(_t_test_p(differences, -margin, "greater"), _t_test_p(differences, margin, "less"))


def beyond_p(differences: Sequence[float], margin: float) -> float:
    """Return the two-sided p-value that the mean of paired differences is outside +- margin.

    It is below 0.05 exactly if the 95 % t-interval is outside. NaN for fewer than two differences.
    """
    values = np.asarray(differences, dtype=float)
    away = values if values.sum() > 0 else -values
    return 2 * min(_t_test_p(away, margin, "greater"), 0.5)


def _t_test_p(values: Sequence[float], mean: float, alternative: str) -> float:
    """Return the p-value of Student's t-test that the mean is `mean`.

    If all values are equal, the t-test has no scale. The sign test then decides. NaN for fewer than two values.
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
    """Return Holm's step-down adjustment over a family of tests, in the given order.

    NaN stays NaN and does not count as a test.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = largest
    return adjusted
