"""Compare the time of a training step between configurations.

An observer times the steps of `train`. The configurations take turns, in a new random order each round, so that other
load on the machine affects all of them. Trust only the ratios.
"""

import random
import time
from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from workbench.data import Dataset
from workbench.errors import WorkbenchError, unknown
from workbench.training import TrainConfig, train
from workbench.training.inputs import source
from workbench.training.observers import Observer
from workbench.training.setup import initial_model

WARM = 2  # steps before the clock starts
GRAIN = 0.05  # shares of the steps are rounded to this, so that a new measurement rarely needs new trainings


def step_costs(configs: Mapping[str, TrainConfig], rounds: int = 5, steps: int = 6) -> pd.DataFrame:
    """Measure the cost of a training step of each configuration, relative to the first.

    The seconds of a round are divided by their mean, and the medians of these shares over the rounds are compared. So
    one slow turn of the first configuration does not make all others look cheap. On a CPU with one thread the seconds
    are CPU time of the process.

    Args:
        configs: The configurations by arm.
        rounds: Turns of each configuration.
        steps: Timed steps per turn.

    Returns:
        One row per configuration: arm, cost, low and high (the lowest and highest round), seconds (the median).

    Raises:
        WorkbenchError: For less than one round.
    """
    if rounds < 1:
        raise WorkbenchError(f"`rounds` must be at least 1, got {rounds}.")
    order, rng, rows = list(configs), random.Random(0), []
    for turn in range(rounds):
        rng.shuffle(order)
        rows += [{"turn": turn, "arm": arm, "seconds": _seconds_a_step(configs[arm], steps)} for arm in order]
    seen = pd.DataFrame(rows).pivot(index="turn", columns="arm", values="seconds")[list(configs)]
    shares = seen.div(seen.mean(axis=1), axis=0)
    shares /= shares.iloc[:, 0].median()
    columns = {"cost": shares.median(), "low": shares.min(), "high": shares.max(), "seconds": seen.median()}
    return pd.DataFrame(columns).rename_axis("arm").reset_index()


def known_costs(costs: pd.DataFrame, before: Mapping[str, float]) -> dict[str, float]:
    """Return the cost of a step by arm. An earlier measurement replaces the current one.

    Args:
        costs: The rows of `step_costs`.
        before: Costs by arm of an earlier measurement.

    Raises:
        WorkbenchError: For an arm of `before` that is not in `costs`, with the nearest name.
    """
    measured = dict(zip(costs.arm, costs.cost, strict=True))
    for arm in before:
        if arm not in measured:
            raise unknown("arm of `costs_before`", arm, measured)
    return measured | dict(before)


def matched_steps(steps: int, cost: float) -> int:
    """Return how many steps of this cost take the time of `steps` at cost 1.

    The number is rounded to a twentieth of `steps`.
    """
    return max(1, round(steps * max(1, round(1 / cost / GRAIN)) * GRAIN))


def operations_an_image(config: TrainConfig) -> float:
    """Return the floating-point operations of a step per image, forward and backward.

    Torch's counter counts those of convolutions and matrix products.

    Args:
        config: A configuration with images in memory.
    """
    data, n = source(config), 2
    assert isinstance(data, Dataset)  # streamed images have no shape yet
    with torch.random.fork_rng(devices=[]):
        model = initial_model(config, data).train()
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(n, *data.train.images.shape[1:])).sum().backward()
    return counter.get_total_flops() / n


class _Timed(Exception):
    """The end of a training whose steps were timed, before it evaluates anything."""


class _Timer(Observer):
    """A clock that is read at the gradients of two steps, and ends the training at the second."""

    def __init__(self, first: int, last: int):
        one_thread = torch.get_num_threads() == 1 and not torch.cuda.is_available()
        self.clock = time.process_time if one_thread else time.perf_counter
        self.first, self.last, self.marks = first, last, []

    def before_update(self, step: int, loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Read the clock at the first and the last step, and end the training at the last."""
        if step in (self.first, self.last):
            loss.item()  # waits for the device
            self.marks.append(self.clock())
        if step == self.last:
            raise _Timed


def _seconds_a_step(config: TrainConfig, steps: int) -> float:
    timer, last = _Timer(WARM, WARM + steps), WARM + steps + 1
    try:
        train(config.replace(epochs=None, steps=last, eval_every=last, progress=False), observers=[timer])
    except _Timed:
        return (timer.marks[1] - timer.marks[0]) / steps
    return float("nan")  # it diverged before the last timed step
