"""Compare arms with one of them: paired differences over seeds with intervals and tests.

Holm's adjustment covers the arms of one study. Another test is for equivalence.
"""

from collections.abc import Iterable, Sequence

import pandas as pd

from workbench.lab.statistics.intervals import Interval, difference_p, holm, paired_interval, within_p
from workbench.lab.statistics.rates import by_seed
from workbench.lab.statistics.verdict import Effect

EQUAL = 0.005  # accuracy: differences within half a point count as equal


def effects(
    confirmed: pd.DataFrame, against: str, arms: Iterable[str] | None = None, contrast: str | None = None
) -> pd.DataFrame:
    """Compare each arm with `against`.

    Args:
        confirmed: Columns arm, seed, test_acc.
        against: The arm to compare with.
        arms: Arms in the order of the rows. None: in the order of `confirmed`.
        contrast: The arm of the claim's contrast. Its p-value is adjusted over the claims, so it is not part of the
            family here and its p_holm is NaN.

    Returns:
        One row per arm except `against`:

        - arm, accuracy (test, mean), n
        - difference to `against`, with low and high (95 %)
        - p and p_holm of no difference
        - p_equal of a difference beyond half a point
    """
    values = by_seed(confirmed)
    wanted = [arm for arm in (arms or dict.fromkeys(confirmed.arm)) if arm != against and arm in values]
    rows = []
    for arm in wanted:
        pairs = values[[arm, against]].dropna()
        difference = paired_interval(pairs[arm], pairs[against])
        both = pairs[arm] - pairs[against]
        rows.append(
            {
                "arm": arm,
                "accuracy": float(values[arm].mean()),
                "difference": difference.mean,
                "low": difference.low,
                "high": difference.high,
                "n": difference.n,
                "p": difference_p(both),
                "p_equal": within_p(both, EQUAL),
            }
        )
    columns = ["arm", "accuracy", "difference", "low", "high", "n", "p", "p_equal"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(p_holm=holm(table.p.where(table.arm != contrast)))


def compare_arms(
    confirmed: pd.DataFrame,
    against: str,
    arms: Iterable[str] | None = None,
    settings: Sequence[str] = ("lr",),
    mark: str = "failed",
    contrast: str | None = None,
) -> pd.DataFrame:
    """Compare each arm with `against`, and add the arm's settings and failures.

    Args:
        confirmed: Columns arm, seed, test_acc, `mark`, and those of `settings`.
        against: The arm to compare with. It has a row, too.
        arms: Arms in the order of the rows. None: in the order of `confirmed`.
        settings: Columns that are the same in all trainings of an arm.
        mark: A column, 0 or 1. The table has the number of trainings where it is set.
        contrast: As for `effects`.

    Returns:
        One row per arm: the settings, accuracy (test, mean), `mark`, n (trainings), and the columns of `effects`.
    """
    columns = {name: (name, "first") for name in settings} | {"accuracy": ("test_acc", "mean"), mark: (mark, "sum")}
    each = confirmed.groupby("arm", sort=False).agg(**columns, n=("seed", "size"))
    if arms is not None:
        each = each.reindex([arm for arm in arms if arm in each.index])
    comparison = effects(confirmed, against, list(each.index), contrast=contrast).drop(columns=["accuracy", "n"])
    return each.reset_index().merge(comparison, on="arm", how="left")


def details(comparison: pd.DataFrame, *more: str) -> pd.DataFrame:
    """Select the columns of `compare_arms` that the table of a verdict shows, in points.

    Args:
        comparison: Rows of `compare_arms`.
        more: Further columns, placed after `arm`.
    """
    in_points = {name: 100 * comparison[name] for name in ("difference", "low", "high")}
    table = comparison.assign(**in_points).rename(columns={"difference": "points"})
    return table[["arm", *more, "accuracy", "points", "low", "high", "n", "p_holm"]]


def interval_of(comparison: pd.DataFrame, arm: str) -> Interval:
    """Return the difference of one arm from the rows of `effects`."""
    row = comparison.set_index("arm").loc[arm]
    return Interval(float(row.difference), float(row.low), float(row.high), int(row.n))


def effect_of(name: str, confirmed: pd.DataFrame, against: str, arm: str) -> Effect:
    """Return the difference of one arm to `against`, paired by seed.

    Its p-value is not adjusted.
    """
    comparison = effects(confirmed, against, [arm])
    return Effect(name, interval_of(comparison, arm), float(comparison.p.iloc[0]), in_points=True)
