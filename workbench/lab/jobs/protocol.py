"""The protocol: every arm tunes with equally many trials, then fresh seeds confirm its two best settings.

Screening has few seeds, so its best setting is uncertain. Confirming two and judging the better one, by validation
accuracy over all seeds, makes the choice stable. No test accuracy takes part in it.
"""

import itertools
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
ALONE = 2.0  # factor between the rates of an arm with more trials than the single rate of the grid


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
    """Train every arm with the same number of settings, in every cell.

    The best of many settings looks better than the best of few. So an arm without thresholds tries more rates: with k
    thresholds in another arm, k rates for each rate of `lrs`, see `finer`. All its trials then go to the one thing that
    it can tune, and choosing the best favours no arm.

    If an arm is best at an end of its rates, all arms of that cell go beyond that end, by as many settings each. A
    single rate is not a grid and does not grow.

    Args:
        arms: Labels of the arms.
        lrs: Peak learning rates of the arms with the most thresholds.
        seeds: Seeds of each training.
        training: Makes the configuration from arm, lr, seed, the cell, and `clip` if `clips` is given.
        session: Where the trainings run and are kept.
        cells: Settings shared by all arms, such as {"batch_size": 64}.
        extend: How often the rates may grow, at each end.
        clips: By arm the clipping thresholds to try. Other arms train with `clip` None.

    Returns:
        The rows of `run_all` with the columns of the cells.

    Raises:
        WorkbenchError: If `extend` is negative, or the arms cannot get equal numbers of settings.
    """
    if extend < 0:
        raise WorkbenchError(f"`extend` must be at least 0, got {extend}.")
    settings, cells = {arm: _settings(arm, clips) for arm in arms}, list(cells)
    more = _rates_for_each(settings, len(set(lrs)))
    grids = [{arm: finer(lrs, n) for arm, n in more.items()} for _ in cells]
    table, points, missing = pd.DataFrame(), [], grids
    for _ in range(extend + 1):
        new = [
            {"cell": i, "arm": arm, **setting, "lr": lr, "seed": seed}
            for i, rates in enumerate(missing)
            for arm in settings
            for setting in settings[arm]
            for lr in rates[arm]
            for seed in seeds
        ]
        trained = _run([point | {"cell": cells[point["cell"]]} for point in new], training, session, "screen")
        table, points = pd.concat([table, trained], ignore_index=True), points + new
        best = best_rates(pd.DataFrame(points).assign(val_acc=table.val_acc), by=["cell"])
        ends = [_ends(best[best.cell == i], grid) for i, grid in enumerate(grids)] if len(set(lrs)) > 1 else []
        if not any(ends):
            break
        missing = [
            {arm: _beyond(grid[arm], at, n) for arm, n in more.items()} for grid, at in zip(grids, ends, strict=True)
        ]
        grids = [
            {arm: sorted(grid[arm] + rates[arm]) for arm in grid} for grid, rates in zip(grids, missing, strict=True)
        ]
    return table


def finer(lrs: Sequence[float], n: int) -> list[float]:
    """Return `n` rates for each of `lrs`, which are among them.

    Each gap between neighbours is divided into n equal factors. The n - 1 rates that are left go on in equal factors
    beyond the ends, in turn above and below. A single rate has no gap, and its factor is `ALONE`.
    """
    rates = sorted({float(lr) for lr in lrs})
    gaps = [high / low for low, high in itertools.pairwise(rates)]
    inside = [_rounded(low * gap ** (k / n)) for low, gap in zip(rates, gaps, strict=False) for k in range(1, n)]
    first, last = (gaps[0] ** (1 / n), gaps[-1] ** (1 / n)) if gaps else (ALONE, ALONE)
    above = [_rounded(rates[-1] * last**k) for k in range(1, n // 2 + 1)]
    below = [_rounded(rates[0] / first**k) for k in range(1, (n - 1) // 2 + 1)]
    return sorted([*rates, *inside, *above, *below])


def _settings(arm: str, clips: Thresholds | None) -> list[dict]:
    return [{}] if clips is None else [{"clip": clip} for clip in dict.fromkeys(clips.get(arm, [None]))]


def _rates_for_each(settings: Mapping[str, list[dict]], n_rates: int) -> dict[str, int]:
    """Return by arm the number of rates for each rate of the grid, so that all arms have equally many settings.

    Raises:
        WorkbenchError: If the largest number of thresholds is no multiple of another arm's.
    """
    most = max(settings, key=lambda arm: len(settings[arm]))
    largest = len(settings[most])
    for arm, tried in settings.items():
        if not tried or largest % len(tried):
            raise WorkbenchError(
                f"every arm must have as many trials as any other, got {len(tried) * n_rates} for {arm} and "
                f"{largest * n_rates} for {most}. Give {arm} a number of thresholds that divides {largest}."
            )
    return {arm: largest // len(tried) for arm, tried in settings.items()}


def _ends(best: pd.DataFrame, grids: Mapping[str, list[float]]) -> set[int]:
    """Return the ends (0: lowest, -1: highest) at which a rate is best for an arm or one of its thresholds."""
    return {end for end in (0, -1) for row in best.itertuples() if row.lr == grids[row.arm][end]}


def _beyond(grid: list[float], ends: set[int], n: int) -> list[float]:
    """Return the next `n` rates beyond these ends of a grid, with the factor between the last two."""
    neighbours = {0: 1, -1: -2}
    steps = [(grid[end], grid[end] / grid[neighbours[end]]) for end in sorted(ends, reverse=True)]
    return [_rounded(rate * factor**k) for rate, factor in steps for k in range(1, n + 1)]


def _rounded(rate: float) -> float:
    return float(f"{rate:.4g}")


def confirm(
    best: pd.DataFrame,
    seeds: Sequence[int],
    training: Training,
    session: Session,
    by: Sequence[str] = (),
    more: Mapping[str, Sequence[int]] | None = None,
) -> pd.DataFrame:
    """Train each row of `two_best` with fresh seeds and read the test split. `ranked` then chooses among them.

    Args:
        best: The arms, each at the rates to confirm; columns arm, lr and those of `by`.
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
