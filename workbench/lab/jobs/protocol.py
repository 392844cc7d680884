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
Thresholds = Mapping[str, Sequence[float]]  # by arm those that are tried


def screen(
    arms: Iterable[str],
    lrs: Sequence[float],
    seeds: Sequence[int],
    training: Training,
    session: Session,
    cells: Iterable[Mapping] = ({},),
    extend: int = 0,
    clips: Thresholds | None = None,
) -> pd.DataFrame:
    """Train every arm at every rate and threshold, in every cell.

    Where an arm is best at an end of a cell's rates, all arms of that cell train at one more rate, one step of the grid
    beyond that end. A single rate is no grid and is not extended.

    Args:
        arms: Labels of the arms.
        lrs: Peak learning rates, the same for every arm.
        seeds: Seeds of each training.
        training: Makes the configuration from arm, lr, seed, the cell, and `clip` where `clips` is given.
        session: Where the trainings run and are kept.
        cells: Settings shared by all arms, such as {"batch_size": 64}.
        extend: How often the rates may grow, at each end.
        clips: By arm the clipping thresholds to try. Other arms train with `clip` None.

    Returns:
        The rows of `run_all` with the columns of the cells.

    Raises:
        WorkbenchError: For an `extend` below 0.
    """
    if extend < 0:
        raise WorkbenchError(f"`extend` (={extend}) must be at least 0.")
    arms, cells = [(arm, setting) for arm in arms for setting in _settings(arm, clips)], list(cells)
    grids = [sorted({float(lr) for lr in lrs}) for _ in cells]
    table, wanted, missing = pd.DataFrame(), [], [list(lrs) for _ in cells]
    for _ in range(extend + 1):
        new = [
            {"cell": i, "arm": arm, **setting, "lr": lr, "seed": seed}
            for i, rates in enumerate(missing)
            for arm, setting in arms
            for lr in rates
            for seed in seeds
        ]
        trained = _run([one | {"cell": cells[one["cell"]]} for one in new], training, session, "screen")
        table, wanted = pd.concat([table, trained], ignore_index=True), wanted + new
        tried = pd.DataFrame(wanted).assign(val_acc=table.val_acc)
        best = best_rates(tried, by=["cell"]).groupby("cell").lr.agg(set)
        missing = [_beyond(grid, best[i]) for i, grid in enumerate(grids)]
        if not any(missing):
            break
        grids = [sorted([*grid, *rates]) for grid, rates in zip(grids, missing, strict=True)]
    return table


def _settings(arm: str, clips: Thresholds | None) -> list[dict]:
    return [{}] if clips is None else [{"clip": clip} for clip in clips.get(arm, [None])]


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
    """Train each row of `best_rates` with fresh seeds and read the test split.

    Args:
        best: The arms, each at the rate to confirm; columns arm, lr and those of `by`.
        seeds: Fresh seeds.
        training: Makes the configuration from arm, lr, seed and the columns of `by`. An empty cell is passed as None.
        session: Where the trainings run and are kept.
        by: Columns of `best` that are settings, such as "batch_size" and "clip".
        more: By arm further seeds, such as those of the two arms of a contrast.

    Returns:
        The rows of `run_all` with the columns of `by`. `test_acc` is that of guessing where a training diverged.

    Raises:
        WorkbenchError: For a seed that comes twice, or for no seed.
    """
    all_of = {arm: [*seeds, *(more or {}).get(arm, [])] for arm in best.arm}
    for arm_seeds in all_of.values():
        if len(set(arm_seeds)) != len(arm_seeds) or not arm_seeds:
            raise WorkbenchError(f"`seeds` (={arm_seeds}) must be different seeds, at least one.")
    wanted = []
    for _, row in best.iterrows():
        cell = {name: None if pd.isna(row[name]) else row[name] for name in by}
        wanted += [{"cell": cell, "arm": row.arm, "lr": row.lr, "seed": seed} for seed in all_of[row.arm]]

    def with_test(arm: str, lr: float, seed: int, **cell) -> TrainConfig:
        return training(arm, lr, seed, **cell).replace(evaluate_test=True)

    return scored(_run(wanted, with_test, session, "confirm"))


def _run(wanted: list[dict], training: Training, session: Session, role: str) -> pd.DataFrame:
    def configured(cell: Mapping, arm: str, lr: float, seed: int, **setting) -> Arm:
        return Arm(arm, training(arm, float(lr), int(seed), **cell, **setting))

    table = run_all([configured(**one) for one in wanted], session, role=role)
    for name in {name for one in wanted for name in one["cell"]}:
        table[name] = [one["cell"].get(name) for one in wanted]
    return table
