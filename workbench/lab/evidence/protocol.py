"""How evidence is made: every arm tunes its peak learning rate alike, on few seeds of the validation split; then fresh
seeds train at the rate that was best, and they alone read the test split.

A diverged training counts as guessing, in every arm.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
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
    extend: int = 0,
) -> pd.DataFrame:
    """Trains every arm at every rate, in every cell (e.g. {"batch_size": 64}): the rows of `run_all` with the cells'
    columns.

    Where an arm is best at an end of a cell's rates, all arms of that cell train at one rate more beyond that end, a
    step of the grid away; `extend` times at each end, at most. One rate alone is no grid, and stays alone.
    Raises: WorkbenchError for an `extend` below 0.
    """
    if extend < 0:
        raise WorkbenchError(f"`extend` (={extend}) must be at least 0.")
    arms, cells = list(arms), list(cells)
    grids = [sorted({float(lr) for lr in lrs}) for _ in cells]
    table, wanted, missing = pd.DataFrame(), [], [list(lrs) for _ in cells]
    for _ in range(extend + 1):
        new = [(i, arm, lr, s) for i, rates in enumerate(missing) for arm in arms for lr in rates for s in seeds]
        trained = _run([(cells[i], *rest) for i, *rest in new], training, session, "screen")
        table, wanted = pd.concat([table, trained], ignore_index=True), wanted + new
        tried = pd.DataFrame(wanted, columns=["cell", "arm", "lr", "seed"]).assign(val_acc=table.val_acc)
        best = best_rates(tried, by=["cell"]).groupby("cell").lr.agg(set)
        missing = [_beyond(grid, best[i]) for i, grid in enumerate(grids)]
        if not any(missing):
            break
        grids = [sorted([*grid, *rates]) for grid, rates in zip(grids, missing, strict=True)]
    return table


def _beyond(grid: list[float], best: set[float]) -> list[float]:
    """The rates a step beyond those ends of the grid that are best for an arm."""
    if len(grid) < 2:
        return []
    ends = [(grid[0], grid[1]), (grid[-1], grid[-2])]
    return [float(f"{end**2 / neighbour:.4g}") for end, neighbour in ends if end in best]


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


def edges_told(screened: pd.DataFrame, by: Sequence[str] = ()) -> str:
    """Sentences, each with a space before it, on the arms, each at its best setting, that are best at an end of the
    rates, or of their settings; empty where none is."""
    best = best_settings(best_rates(screened, by), by)
    values = {}  # of the settings of each arm
    for name in screened.arm.unique():
        values.setdefault(arm_of(name), set()).update(map(float, name.split(" at ")[1:]))
    ends = {f"{arm} at {end:g}" for arm, of in values.items() if len(of) > 1 for end in (min(of), max(of))}
    return _ends_told(best[best.at_edge], by, "rate") + _ends_told(best[best.arm.isin(ends)], by, "threshold")


def _ends_told(edges: pd.DataFrame, by: Sequence[str], what: str) -> str:
    told = [" ".join([row.arm, *(f"at {name} {row[name]:g}" for name in by)]) for _, row in edges.iterrows()]
    if not told:
        return ""
    ends = f"is best at the last {what} that was tried, so a better one"
    if len(told) > 1:
        ends = f"are best at the last {what}s that were tried, so better ones"
    return f" {', '.join(told)} {ends} may lie beyond."


def confirm(
    best: pd.DataFrame,
    seeds: Sequence[int],
    training: Training,
    session: Session,
    by: Sequence[str] = (),
    more: Mapping[str, Sequence[int]] | None = None,
) -> pd.DataFrame:
    """Trains each row of `best_rates` with fresh seeds and reads the test split: `test_acc`, guessing where it
    diverged. `more`: further seeds of some arms, such as the two of a contrast.

    Raises: WorkbenchError for seeds that are none.
    """
    all_of = {arm: [*seeds, *(more or {}).get(arm, [])] for arm in best.arm}
    for own in all_of.values():
        if len(set(own)) != len(own) or not own:
            raise WorkbenchError(f"`seeds` (={own}) must be different seeds, at least one.")
    cells = [({name: row[name] for name in by}, row.arm, row.lr) for _, row in best.iterrows()]
    wanted = [(cell, arm, lr, seed) for cell, arm, lr in cells for seed in all_of[arm]]

    def with_test(arm: str, lr: float, seed: int, **cell) -> TrainConfig:
        return training(arm, lr, seed, **cell).replace(evaluate_test=True)

    return scored(_run(wanted, with_test, session, "confirm"))


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


def _run(wanted: list[tuple], training: Training, session: Session, role: str) -> pd.DataFrame:
    trainings = [Arm(arm, training(arm, float(lr), int(seed), **cell)) for cell, arm, lr, seed in wanted]
    table = run_all(trainings, session, role=role)
    for name in {name for cell, *_ in wanted for name in cell}:
        table[name] = [cell.get(name) for cell, *_ in wanted]
    return table
