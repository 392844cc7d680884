"""How evidence is made: every arm tunes its peak learning rate alike, on few seeds of the validation split; then fresh
seeds train at the rate that was best, and they alone read the test split.

A diverged training counts as guessing, in every arm.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from workbench.errors import WorkbenchError


def best_rates(screened: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """One row an arm and cell: the rate `lr` of the highest mean validation accuracy, that mean as `val_acc`, and
    `at_edge`: whether it is the lowest or highest that was tried there, so that a better one may lie outside."""
    means = screened.groupby([*by, "arm", "lr"], sort=False).val_acc.mean().reset_index()
    over = means.groupby([*by, "arm"], sort=False)
    lowest, highest = over.lr.transform("min"), over.lr.transform("max")
    means["at_edge"] = ((means.lr == lowest) | (means.lr == highest)) & (lowest < highest)
    return means.loc[over.val_acc.idxmax()].reset_index(drop=True)


def at_carried_rate(means: pd.DataFrame, batch: int, score: str, scaled: bool = True) -> pd.DataFrame:
    """Of these rows (batch_size, lr, and a `score` that larger is better) those of `batch` at the best rate of the
    smallest batch: in proportion to the batch, as the paper carries it over (section 4.1), or as it is. None where
    that rate is not on the grid."""
    smallest = means[means.batch_size == means.batch_size.min()]
    first = smallest.loc[smallest[score].idxmax()]
    lr = first.lr * (batch / first.batch_size if scaled else 1)
    return means[(means.batch_size == batch) & np.isclose(means.lr, lr, rtol=0.02)]


def arm_of(name: str) -> str:
    """The arm of a name that may tell a threshold, too: "NF+AGC at 0.04" is a setting of "NF+AGC"."""
    return name.partition(" at ")[0]


def best_settings(best: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of `best_rates`, of several settings of an arm (see `arm_of`) only that of the highest validation
    accuracy in each cell."""
    over = best.assign(of=best.arm.map(arm_of)).groupby([*by, "of"], sort=False)
    return best.loc[over.val_acc.idxmax()].reset_index(drop=True)


def edges(screened: pd.DataFrame, by: Sequence[str] = ()) -> dict[str, str]:
    """List what is best at an end of those tried, so that a better one may lie beyond.

    Args:
        screened: The trainings that chose; columns arm, lr, val_acc and those of `by`.
        by: Columns of a cell. Each cell has its best rate and setting.

    Returns:
        By arm (see `arm_of`) "rate", "threshold" or both, with the cell ("rate at 4"). Other arms are left out.
    """
    best = best_settings(best_rates(screened, by), by)
    thresholds: dict[str, set[float]] = {}
    for name in screened.arm.unique():
        thresholds.setdefault(arm_of(name), set()).update(map(float, name.split(" at ")[1:]))
    ends = {f"{arm} at {end:g}" for arm, of in thresholds.items() if len(of) > 1 for end in (min(of), max(of))}
    by_arm: dict[str, list[str]] = {}
    for what, rows in (("rate", best[best.at_edge]), ("threshold", best[best.arm.isin(ends)])):
        for _, row in rows.iterrows():
            cell = "".join(f" at {row[name]:g}" for name in by)
            by_arm.setdefault(arm_of(row.arm), []).append(what + cell)
    return {arm: ", ".join(names) for arm, names in by_arm.items()}


def with_edges(table: pd.DataFrame, screened: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Add the column `at_edge` to a table with a column `arm`: what `edges` lists; empty where it lists nothing."""
    by_arm = edges(screened, by)
    return table.assign(at_edge=[by_arm.get(arm_of(arm), "") for arm in table.arm])


def scored(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with `test_acc` of a training that diverged, too: guessing."""
    guessing = table.val_acc.where(table.outcome == "diverged")
    return table.assign(test_acc=table.test_acc.fillna(guessing) if "test_acc" in table else guessing)


def refuse_shared(screening: Sequence[int], confirming: Sequence[int]) -> None:
    """Raises: WorkbenchError for a seed that would both choose and confirm."""
    if shared := sorted(set(screening) & set(confirming)):
        raise WorkbenchError(f"seeds {shared} would both choose and confirm: confirm with fresh ones.")


def by_seed(confirmed: pd.DataFrame, columns: str = "arm", value: str = "test_acc") -> pd.DataFrame:
    """The value of each seed (rows) in each arm, or cell: pairs that share a seed."""
    return confirmed.pivot_table(index="seed", columns=columns, values=value)
