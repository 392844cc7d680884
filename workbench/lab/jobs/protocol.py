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
Thresholds = Mapping[str, Sequence[float]]  # by arm the thresholds to try


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

    If an arm is best at an end of a cell's rates, the grid grows by one step beyond that end. All arms of that cell
    train at the new rate. A single rate is not a grid and does not grow.

    Args:
        arms: Labels of the arms.
        lrs: Peak learning rates, the same for every arm.
        seeds: Seeds of each training.
        training: Makes the configuration from arm, lr, seed, the cell, and `clip` if `clips` is given.
        session: Where the trainings run and are kept.
        cells: Settings shared by all arms, such as {"batch_size": 64}.
        extend: How often the rates may grow, at each end.
        clips: By arm the clipping thresholds to try. Other arms train with `clip` None.

    Returns:
        The rows of `run_all` with the columns of the cells.

    Raises:
        WorkbenchError: If `extend` is negative.
    """
    if extend < 0:
        raise WorkbenchError(f"`extend` must be at least 0, got {extend}.")
    arms, cells = [(arm, setting) for arm in arms for setting in _settings(arm, clips)], list(cells)
    grids = [sorted({float(lr) for lr in lrs}) for _ in cells]
    table, points, missing = pd.DataFrame(), [], [list(lrs) for _ in cells]
    for _ in range(extend + 1):
        new = [
            {"cell": i, "arm": arm, **setting, "lr": lr, "seed": seed}
            for i, rates in enumerate(missing)
            for arm, setting in arms
            for lr in rates
            for seed in seeds
        ]
        trained = _run([point | {"cell": cells[point["cell"]]} for point in new], training, session, "screen")
        table, points = pd.concat([table, trained], ignore_index=True), points + new
        tried = pd.DataFrame(points).assign(val_acc=table.val_acc)
        best = best_rates(tried, by=["cell"]).groupby("cell").lr.agg(set)
        missing = [_beyond(grid, best[i]) for i, grid in enumerate(grids)]
        if not any(missing):
            break
        grids = [sorted([*grid, *rates]) for grid, rates in zip(grids, missing, strict=True)]
    return table


def _settings(arm: str, clips: Thresholds | None) -> list[dict]:
    return [{}] if clips is None else [{"clip": clip} for clip in clips.get(arm, [None])]


def _beyond(grid: list[float], best: set[float]) -> list[float]:
    """Return the rates one step beyond those ends of the grid that are best for an arm."""
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
        more: More seeds by arm, such as for the two arms of a contrast.

    Returns:
        The rows of `run_all` with the columns of `by`. `test_acc` of a diverged training is that of guessing.

    Raises:
        WorkbenchError: If a seed repeats, or an arm has no seed.
    """
    seeds_by_arm = {arm: [*seeds, *(more or {}).get(arm, [])] for arm in best.arm}
    for arm, arm_seeds in seeds_by_arm.items():
        if len(set(arm_seeds)) != len(arm_seeds) or not arm_seeds:
            raise WorkbenchError(f"`seeds` of arm {arm} must be different, and at least one, got {arm_seeds}.")
    points = []
    for _, row in best.iterrows():
        cell = {name: None if pd.isna(row[name]) else row[name] for name in by}
        points += [{"cell": cell, "arm": row.arm, "lr": row.lr, "seed": seed} for seed in seeds_by_arm[row.arm]]

    def with_test(arm: str, lr: float, seed: int, **cell) -> TrainConfig:
        return training(arm, lr, seed, **cell).replace(evaluate_test=True)

    return scored(_run(points, with_test, session, "confirm"))


def _run(points: list[dict], training: Training, session: Session, role: str) -> pd.DataFrame:
    def configured(cell: Mapping, arm: str, lr: float, seed: int, **setting) -> Arm:
        return Arm(arm, training(arm, float(lr), int(seed), **cell, **setting))

    table = run_all([configured(**point) for point in points], session, role=role)
    for name in {name for point in points for name in point["cell"]}:
        table[name] = [point["cell"].get(name) for point in points]
    return table
