"""The protocol: every arm tunes its peak learning rate alike, then fresh seeds confirm."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from workbench.errors import WorkbenchError
from workbench.lab.jobs.job import Arm
from workbench.lab.jobs.run_all import run_all
from workbench.lab.statistics.rates import best_rates, scored
from workbench.lab.studies.session import Session
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
    for arm_seeds in all_of.values():
        if len(set(arm_seeds)) != len(arm_seeds) or not arm_seeds:
            raise WorkbenchError(f"`seeds` (={arm_seeds}) must be different seeds, at least one.")
    cells = [({name: row[name] for name in by}, row.arm, row.lr) for _, row in best.iterrows()]
    wanted = [(cell, arm, lr, seed) for cell, arm, lr in cells for seed in all_of[arm]]

    def with_test(arm: str, lr: float, seed: int, **cell) -> TrainConfig:
        return training(arm, lr, seed, **cell).replace(evaluate_test=True)

    return scored(_run(wanted, with_test, session, "confirm"))


def _run(wanted: list[tuple], training: Training, session: Session, role: str) -> pd.DataFrame:
    trainings = [Arm(arm, training(arm, float(lr), int(seed), **cell)) for cell, arm, lr, seed in wanted]
    table = run_all(trainings, session, role=role)
    for name in {name for cell, *_ in wanted for name in cell}:
        table[name] = [cell.get(name) for cell, *_ in wanted]
    return table
