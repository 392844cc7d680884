"""Read further results of trainings without training twice.

A second arm of the same trainings has its own metrics, such as those of averaged weights or of BatchNorm with
recomputed statistics. Curves are accuracies over the steps.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from workbench.lab.statistics.rates import with_numbers
from workbench.lab.store.client import Store
from workbench.outcomes import DIVERGED


def with_second(table: pd.DataFrame, second: Mapping[str, str], prefix: str) -> pd.DataFrame:
    """Add the rows of second arms.

    Args:
        table: Rows of trainings.
        second: Name of the second arm by first arm.
        prefix: The second arm's val_acc and test_acc are the columns with this prefix. A diverged training has none:
            its second arm takes the training's, which are those of guessing.
    """
    again = table[table.arm.isin(list(second))]
    read = {"arm": again.arm.map(second)}
    for name in ("val_acc", "test_acc"):
        if name in table:
            readings = again[prefix + name] if prefix + name in table else pd.Series(float("nan"), again.index)
            read[name] = readings.astype(float).fillna(again[name])
    return pd.concat([table, again.assign(**read)], ignore_index=True)


def to_train(best: pd.DataFrame, second: Mapping[str, str], by: Sequence[str] = ()) -> pd.DataFrame:
    """Turn rows of `two_best` into trainings: a second arm's become the first's, each once.

    Args:
        best: The rows.
        second: Name of the second arm by first arm.
        by: Columns that are settings.
    """
    first = {name: arm for arm, name in second.items()}
    return best.assign(arm=best.arm.replace(first)).drop_duplicates([*by, *_setting(best)]).reset_index(drop=True)


def at_best(table: pd.DataFrame, best: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Return the rows with the best settings of their arm and cell.

    Args:
        table: Rows of trainings.
        best: The rows of `two_best`.
        by: Columns that are settings.
    """
    columns = [*by, *_setting(best)]
    return with_numbers(table).merge(with_numbers(best)[columns], on=columns)


def _setting(best: pd.DataFrame) -> list[str]:
    return [name for name in ("arm", "lr", "clip") if name in best]


def curves_of(confirmed: pd.DataFrame, store: Store) -> pd.DataFrame:
    """Read validation accuracy over steps from the store: columns arm, seed, step, val_acc.

    Diverged trainings are left out.
    """
    histories = [
        store.read_table(row.run_id, "history")[["step", "val_acc"]].assign(arm=row.arm, seed=row.seed)
        for row in confirmed.itertuples()
        if row.outcome != DIVERGED
    ]
    nothing = pd.DataFrame(columns=["step", "val_acc", "arm", "seed"])
    return pd.concat(histories, ignore_index=True) if histories else nothing
