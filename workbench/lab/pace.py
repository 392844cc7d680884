"""What a training step costs of one configuration beside another's, and how many steps are equal time.

The steps are those of `train`, timed from inside; the configurations take turns, and ratios are of one round, so that
what else the machine does falls on all of them. Only the ratio is to be trusted.
"""

import statistics
import time
from collections.abc import Mapping

import pandas as pd
import torch

from workbench.training import TrainConfig, train

WARM = 2  # steps before the clock starts
GRAIN = 0.05  # shares of the steps are rounded to this, so that a new measurement rarely asks for new trainings


def step_costs(configs: Mapping[str, TrainConfig], rounds: int = 5, steps: int = 6) -> pd.DataFrame:
    """One row a configuration: arm, cost (the median over rounds of its seconds a step over the first's), low and high
    (least and greatest), seconds (median). On a CPU with one thread the seconds are the process's own."""
    seen = {arm: [] for arm in configs}
    for _ in range(rounds):
        for arm, config in configs.items():
            seen[arm].append(_seconds_a_step(config, steps))
    first = next(iter(seen.values()))
    rows = []
    for arm, seconds in seen.items():
        ratios = [a / b for a, b in zip(seconds, first, strict=True)]
        cost, middle = statistics.median(ratios), statistics.median(seconds)
        rows.append({"arm": arm, "cost": cost, "low": min(ratios), "high": max(ratios), "seconds": middle})
    return pd.DataFrame(rows)


def matched_steps(steps: int, cost: float) -> int:
    """How many steps of this cost take the time of `steps` of cost 1, to a twentieth of them."""
    return max(1, round(steps * max(1, round(1 / cost / GRAIN)) * GRAIN))


class _Timed(Exception):
    """Ends a training whose steps were timed, before it evaluates anything."""


def _seconds_a_step(config: TrainConfig, steps: int) -> float:
    marks = []

    def observe(step, loss, model, optimizer):
        if step in (WARM, WARM + steps):
            loss.item()  # waits for the device
            marks.append(clock())
        if len(marks) == 2:
            raise _Timed

    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = time.process_time if alone else time.perf_counter
    try:
        long = config.replace(epochs=None, steps=WARM + steps + 1, eval_every=WARM + steps + 1, progress=False)
        train(long, observe=observe)
    except _Timed:
        return (marks[1] - marks[0]) / steps
    return float("nan")  # it diverged before
