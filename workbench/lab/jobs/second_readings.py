"""Trainings read again: by metrics of their own that are another arm, such as those of averaged weights or of
BatchNorm's statistics taken again, and over their steps. Nothing is trained twice."""

from collections.abc import Mapping, Sequence

import pandas as pd

from workbench.lab.store.client import Store


def with_second(table: pd.DataFrame, second: Mapping[str, str], prefix: str) -> pd.DataFrame:
    """Adds for each arm in `second` rows of the arm that it names there, whose val_acc and test_acc are the columns
    with the prefix; where a training diverged, those of the training, which are guessing."""
    again = table[table.arm.isin(list(second))]
    read = {"arm": again.arm.map(second)}
    for name in ("val_acc", "test_acc"):
        if name in table:
            readings = again[prefix + name] if prefix + name in table else pd.Series(float("nan"), again.index)
            read[name] = readings.astype(float).fillna(again[name])
    return pd.concat([table, again.assign(**read)], ignore_index=True)


def to_train(best: pd.DataFrame, second: Mapping[str, str], by: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of `best_rates` as trainings: those of a second arm are the first's, and none comes twice."""
    first = {name: arm for arm, name in second.items()}
    return best.assign(arm=best.arm.replace(first)).drop_duplicates([*by, "arm", "lr"]).reset_index(drop=True)


def at_best(table: pd.DataFrame, best: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """The rows at the rate that is the best of their own arm and cell."""
    return table.merge(best[[*by, "arm", "lr"]], on=[*by, "arm", "lr"])


def curves_of(confirmed: pd.DataFrame, store: Store) -> pd.DataFrame:
    """The validation accuracy over the steps of these trainings, as the store has it: arm, seed, step, val_acc."""
    histories = [
        store.read_table(row.run_id, "history")[["step", "val_acc"]].assign(arm=row.arm, seed=row.seed)
        for row in confirmed.itertuples()
        if row.outcome != "diverged"
    ]
    return pd.concat(histories, ignore_index=True)
