"""How evidence is made: every arm tunes its peak learning rate alike, on few seeds of the validation split; then fresh
seeds train at the rate that was best, and they alone read the test split.

A diverged training counts as guessing, in every arm.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from workbench.errors import WorkbenchError
from workbench.lab.session import Session
from workbench.lab.trainings import Arm, run_all
from workbench.training import TrainConfig

Training = Callable[..., TrainConfig]  # (arm, lr, seed, **cell) -> the training


def screen(
    arms: Iterable[str],
    lrs: Sequence[float],
    seeds: Sequence[int],
    training: Training,
    session: Session,
    cells: Iterable[Mapping] = ({},),
) -> pd.DataFrame:
    """Trains every arm at every rate, in every cell (e.g. {"batch_size": 64}): the rows of `run_all` with the cells'
    columns."""
    wanted = [(cell, arm, lr, seed) for cell in cells for arm in arms for lr in lrs for seed in seeds]
    return _run(wanted, training, session, "screen")


def best_rates(screened: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """One row an arm and cell: the rate `lr` of the highest mean validation accuracy, that mean as `val_acc`, and
    `at_edge`: whether it is the lowest or highest that was tried, so that a better one may lie outside."""
    means = screened.groupby([*by, "arm", "lr"], sort=False).val_acc.mean().reset_index()
    best = means.loc[means.groupby([*by, "arm"], sort=False).val_acc.idxmax()].reset_index(drop=True)
    lrs = screened.lr
    return best.assign(at_edge=best.lr.isin([lrs.min(), lrs.max()]) & (lrs.nunique() > 1))


def confirm(
    best: pd.DataFrame, seeds: Sequence[int], training: Training, session: Session, by: Sequence[str] = ()
) -> pd.DataFrame:
    """Trains each row of `best_rates` with fresh seeds and reads the test split: `test_acc`, guessing where it
    diverged.

    Raises: WorkbenchError for seeds that are none.
    """
    if len(set(seeds)) != len(seeds) or not seeds:
        raise WorkbenchError(f"`seeds` (={list(seeds)}) must be different seeds, at least one.")
    wanted = [({name: row[name] for name in by}, row.arm, row.lr, seed) for _, row in best.iterrows() for seed in seeds]

    def with_test(arm: str, lr: float, seed: int, **cell) -> TrainConfig:
        return training(arm, lr, seed, **cell).replace(evaluate_test=True)

    table = _run(wanted, with_test, session, "confirm")
    guessing = table.val_acc.where(table.outcome == "diverged")
    return table.assign(test_acc=table.test_acc.fillna(guessing) if "test_acc" in table else guessing)


def refuse_shared(screening: Sequence[int], confirming: Sequence[int]) -> None:
    """Raises: WorkbenchError for a seed that would both choose and confirm."""
    if shared := sorted(set(screening) & set(confirming)):
        raise WorkbenchError(f"seeds {shared} would both choose and confirm: confirm with fresh ones.")


def by_seed(confirmed: pd.DataFrame, columns: str = "arm", value: str = "test_acc") -> pd.DataFrame:
    """The value of each seed (rows) in each arm, or cell: pairs that share a seed."""
    return confirmed.pivot_table(index="seed", columns=columns, values=value)


def _run(wanted: list[tuple], training: Training, session: Session, role: str) -> pd.DataFrame:
    trainings = [Arm(arm, training(arm, float(lr), int(seed), **cell)) for cell, arm, lr, seed in wanted]
    table = run_all(trainings, session, role=role)
    for name in {name for cell, *_ in wanted for name in cell}:
        table[name] = [cell.get(name) for cell, *_ in wanted]
    return table
