"""Arms beside one of them: paired differences over seeds with intervals, Holm within the family, and equivalence."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from workbench.lab.evidence.protocol import by_seed
from workbench.lab.stats import Interval, difference_p, holm, paired_interval, t_interval, within_p

EQUAL = 0.005  # accuracy: differences within half a point count as none


def effects(
    confirmed: pd.DataFrame, against: str, arms: Iterable[str] | None = None, contrast: str | None = None
) -> pd.DataFrame:
    """One row an arm but `against`: accuracy (test, mean), difference to `against` with low and high (95 %), n, p and
    p_holm of no difference, and p_equal of a difference beyond half a point.

    Columns of `confirmed`: arm, seed, test_acc. `arms` in their order; None: as they come. The arm that a claim's
    `contrast` is about is adjusted over the claims, so it is not of the family here, and its p_holm NaN.
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


def beside(
    confirmed: pd.DataFrame,
    against: str,
    arms: Iterable[str] | None = None,
    settings: Sequence[str] = ("lr",),
    mark: str = "failed",
    contrast: str | None = None,
) -> pd.DataFrame:
    """One row an arm, `against` among them: its settings (columns that are alike in all its trainings), accuracy (test,
    mean), in how many trainings `mark` is set, n trainings, and what `effects` says of the difference to `against`."""
    told = {name: (name, "first") for name in settings} | {"accuracy": ("test_acc", "mean"), mark: (mark, "sum")}
    each = confirmed.groupby("arm", sort=False).agg(**told, n=("seed", "size"))
    if arms is not None:
        each = each.reindex([arm for arm in arms if arm in each.index])
    found = effects(confirmed, against, list(each.index), contrast=contrast).drop(columns=["accuracy", "n"])
    return each.reset_index().merge(found, on="arm", how="left")


def interval_of(found: pd.DataFrame, arm: str) -> Interval:
    """The difference of one arm, from the rows of `effects`."""
    row = found.set_index("arm").loc[arm]
    return Interval(row.difference, row.low, row.high, int(row.n))


def draw(ax, confirmed: pd.DataFrame, against: str, arms: list[str], mark: str = "failed") -> None:
    """Each arm a line from the top: the paired differences of its seeds, crossed where a training of the pair has
    `mark` (0 or 1) set, and their mean with its 95 % interval; the margin of equality is shaded."""
    from workbench.lab import plots

    values, marked = by_seed(confirmed), by_seed(confirmed, value=mark)
    for y, arm in enumerate(arms):
        if arm == against or arm not in values:
            continue
        difference = 100 * (values[arm] - values[against]).dropna()
        lost = (marked.loc[difference.index, [arm, against]] > 0).any(axis=1)
        at = y + np.linspace(-0.22, 0.22, len(difference))
        ax.plot(difference[~lost], at[~lost], "o", ms=3, color="0.65", zorder=2)
        ax.plot(difference[lost], at[lost], "x", ms=6, color="#d55e00", zorder=2)
        mean = t_interval(difference)
        bounds = np.nan_to_num([[mean.mean - mean.low], [mean.high - mean.mean]])
        ax.errorbar(mean.mean, y, xerr=bounds, fmt="s", ms=5, capsize=3, lw=1.4, color=plots.CYCLE[0], zorder=3)
    ax.axvline(0, color="0.3", lw=0.8)
    ax.axvspan(-100 * EQUAL, 100 * EQUAL, color="0.92", lw=0, zorder=0, label="equal within 0.5 points")
    ax.plot([], [], "o", ms=3, color="0.65", label="a seed")
    ax.plot([], [], "x", ms=6, color="#d55e00", label=f"a seed {mark}")
    ax.errorbar([], [], xerr=[], fmt="s", ms=5, capsize=3, color=plots.CYCLE[0], label="mean, 95 % interval")
    ax.set_yticks(range(len(arms)), arms)
    low, high = ax.get_xlim()
    within = max(-100, low), min(100, high)  # of two seeds an interval goes beyond all accuracies
    ax.set(ylim=(len(arms) - 0.5, -0.5), xlim=within, xlabel=f"test accuracy minus that of “{against}”, points")
