"""Choose learning rates and thresholds by screening, and prepare the confirmation.

Every arm has equally many trials, on few seeds of the validation split. Fresh seeds then train its two best settings,
and only they read the test split. The better setting by validation accuracy, over all seeds, is judged. A diverged
training counts as guessing, in every arm.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from workbench.errors import WorkbenchError
from workbench.outcomes import DIVERGED


def best_rates(screened: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Find the best rate of every arm, and of each of its thresholds.

    Args:
        screened: The screening. Columns arm, lr, val_acc and those of `by`. With a column `clip`, each threshold of an
            arm has a best rate.
        by: Columns of a cell, such as the batch size. Each cell has its own best rate.

    Returns:
        One row per cell, arm and threshold. Columns: the rate `lr` of the highest mean validation accuracy, that mean
        as `val_acc`, and `at_edge`, which marks the lowest or highest rate tried there.
    """
    means = _means(screened, by)
    setting = [name for name in means if name not in ("lr", "val_acc", "at_edge")]
    over = means.groupby(setting, sort=False, dropna=False)
    return means.loc[over.val_acc.idxmax()].reset_index(drop=True)


def two_best(screened: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Find the two best settings of every arm and cell: rates, or rates and thresholds.

    Args:
        screened: As for `best_rates`.
        by: Columns of a cell.

    Returns:
        One row per cell, arm and rank, with the columns of `best_rates` and `rank` (1 is the best). An arm with one
        setting has one row.
    """
    means = _means(screened, by)
    over = means.groupby([*by, "arm"], sort=False, dropna=False)
    means = means.assign(rank=over.val_acc.rank(method="first", ascending=False).astype(int), place=over.ngroup())
    return means[means["rank"] <= 2].sort_values(["place", "rank"]).drop(columns="place").reset_index(drop=True)


def ranked(confirmed: pd.DataFrame, screened: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Rank the confirmed settings of each arm and cell. Rank 1 is judged.

    The better one has the higher validation accuracy, over the seeds of screening and confirmation. Test accuracies
    take no part.

    Args:
        confirmed: The confirmation of the rows of `two_best`. Columns arm, lr, val_acc and those of `by`.
        screened: The screening.
        by: Columns of a cell. Those that `screened` lacks share its trainings.

    Returns:
        The rows of `confirmed` with the column `rank` (1, 2).
    """
    confirmed, screened = with_numbers(confirmed), with_numbers(screened)
    setting = [*by, "arm", "lr", *(["clip"] if "clip" in screened and "clip" not in by else [])]
    shared = [name for name in setting if name in screened]
    tried = screened.merge(confirmed[setting].drop_duplicates(), on=shared)
    pooled = pd.concat([table[[*setting, "val_acc"]] for table in (confirmed, tried)])
    means = pooled.groupby(setting, sort=False, dropna=False).val_acc.mean().reset_index()
    over = means.groupby([*by, "arm"], sort=False, dropna=False)
    ranks = means[setting].assign(rank=over.val_acc.rank(method="first", ascending=False).astype(int))
    return confirmed.drop(columns="rank", errors="ignore").merge(ranks, on=setting)


def with_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Make thresholds numbers, NaN without clipping, so that tables with and without clipping can be merged."""
    return table.astype({"clip": float}) if "clip" in table else table


def _means(screened: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the mean accuracy of every setting, and whether its rate is the lowest or highest tried there."""
    setting = [*by, "arm", *(["clip"] if "clip" in screened else [])]
    means = screened.groupby([*setting, "lr"], sort=False, dropna=False).val_acc.mean().reset_index()
    over = means.groupby(setting, sort=False, dropna=False)
    lowest, highest = over.lr.transform("min"), over.lr.transform("max")
    return means.assign(at_edge=((means.lr == lowest) | (means.lr == highest)) & (lowest < highest))


def best_settings(best: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Keep the best rate and threshold of every arm and cell, by validation accuracy.

    Args:
        best: Rows of `best_rates`.
        by: Columns of a cell.

    Returns:
        One row per cell and arm.
    """
    return best.loc[best.groupby([*by, "arm"], sort=False).val_acc.idxmax()].reset_index(drop=True)


def at_carried_rate(means: pd.DataFrame, batch: int, score: str, scaled: bool = True) -> pd.DataFrame:
    """Select the rows of `batch` at the best rate of the smallest batch.

    Args:
        means: Columns batch_size, lr and `score`.
        batch: A batch size.
        score: A column where larger is better.
        scaled: Whether to scale that rate in proportion to the batch, as the paper does (section 4.1).

    Returns:
        The rows. Empty if the rate is not on the grid.
    """
    smallest = means[means.batch_size == means.batch_size.min()]
    first = smallest.loc[smallest[score].idxmax()]
    lr = first.lr * (batch / first.batch_size if scaled else 1)
    return means[(means.batch_size == batch) & np.isclose(means.lr, lr, rtol=0.02)]


def edges(screened: pd.DataFrame, by: Sequence[str] = ()) -> dict[str, str]:
    """List which best values are at an end of those tried. A better value may lie beyond.

    Args:
        screened: The screening. Columns arm, lr, val_acc, those of `by`, and clip if it was tuned.
        by: Columns of a cell. Each cell has its own best rate and threshold.

    Returns:
        By arm "rate", "threshold" or both, with the cell ("rate at 4"). Other arms are left out.
    """
    best = best_settings(best_rates(screened, by), by)
    ends = {"rate": best.at_edge}
    if "clip" in screened:
        tried = screened.assign(clip=screened["clip"].astype(float)).groupby("arm")["clip"]
        lowest, highest = best.arm.map(tried.min()), best.arm.map(tried.max())
        ends["threshold"] = (lowest < highest) & ((best["clip"] == lowest) | (best["clip"] == highest))
    by_arm: dict[str, list[str]] = {}
    for what, at_end in ends.items():
        for _, row in best[at_end].iterrows():
            by_arm.setdefault(row.arm, []).append(what + "".join(f" at {row[name]:g}" for name in by))
    return {arm: ", ".join(names) for arm, names in by_arm.items()}


def with_edges(table: pd.DataFrame, screened: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Add the column `at_edge`: what `edges` lists for the arm, otherwise empty.

    Args:
        table: A table with a column `arm`.
        screened: As for `edges`.
        by: As for `edges`.
    """
    return table.assign(at_edge=table.arm.map(edges(screened, by)).astype(object).fillna(""))


def scored(table: pd.DataFrame) -> pd.DataFrame:
    """Give trainings that diverged a `test_acc`, that of guessing."""
    guessing = table.val_acc.where(table.outcome == DIVERGED)
    return table.assign(test_acc=table.test_acc.fillna(guessing) if "test_acc" in table else guessing)


def refuse_shared(screening: Sequence[int], confirming: Sequence[int]) -> None:
    """Check that no seed both chooses and confirms.

    Raises:
        WorkbenchError: If the lists share a seed.
    """
    if shared := sorted(set(screening) & set(confirming)):
        raise WorkbenchError(f"Seeds {shared} would both choose and confirm. Confirm with fresh seeds.")


def by_seed(confirmed: pd.DataFrame, columns: str = "arm", value: str = "test_acc") -> pd.DataFrame:
    """Return a table with one row per seed and one column per arm or cell.

    Values in one row form pairs, because they share a seed.

    Args:
        confirmed: Columns seed, `value`, and those of `columns`.
        columns: What the columns are.
        value: What the cells contain.
    """
    return confirmed.pivot_table(index="seed", columns=columns, values=value)
