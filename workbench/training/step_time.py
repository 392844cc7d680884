"""What a training step costs of one configuration beside another's, and how many steps are equal time.

The steps are those of `train`, timed from inside; the configurations take turns, in an order drawn again each round, so
that what else the machine does falls on all of them. Only the ratio is to be trusted.
"""

import random
import time
from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from workbench.errors import WorkbenchError, unknown
from workbench.training import TrainConfig, train
from workbench.training.inputs import source
from workbench.training.observers import Observer
from workbench.training.setup import initial_model

WARM = 2  # steps before the clock starts
GRAIN = 0.05  # shares of the steps are rounded to this, so that a new measurement rarely asks for new trainings


def step_costs(configs: Mapping[str, TrainConfig], rounds: int = 5, steps: int = 6) -> pd.DataFrame:
    """One row a configuration: arm, cost of a step (over the first's), low and high (its least and greatest round),
    seconds (median). On a CPU with one thread the seconds are the process's own.

    A round's seconds are taken over their mean, and of these shares the median over rounds is compared: one slow turn
    of the first does not make all others cheap. Raises: WorkbenchError for less than one round.
    """
    if rounds < 1:
        raise WorkbenchError(f"`rounds` (={rounds}) must be at least 1.")
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
    """The cost of a step by arm: as measured before where that is given, else as in the rows of `step_costs`.

    Raises: WorkbenchError, naming the nearest, for an arm that is not among them.
    """
    measured = dict(zip(costs.arm, costs.cost, strict=True))
    for arm in before:
        if arm not in measured:
            raise unknown("arm of `costs_before`", arm, measured)
    return measured | dict(before)


def matched_steps(steps: int, cost: float) -> int:
    """How many steps of this cost take the time of `steps` of cost 1, to a twentieth of them."""
    return max(1, round(steps * max(1, round(1 / cost / GRAIN)) * GRAIN))


def operations_an_image(config: TrainConfig) -> float:
    """Floating-point operations of one image's share of a step, forward and backward: those of convolutions and matrix
    products, by torch's counter."""
    data, n = source(config), 2
    with torch.random.fork_rng(devices=[]):
        model = initial_model(config, data).train()
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(n, *data.train.images.shape[1:])).sum().backward()
    return counter.get_total_flops() / n


class _Timed(Exception):
    """Ends a training whose steps were timed, before it evaluates anything."""


class _Timer(Observer):
    """Reads the clock at the gradients of two steps, and ends the training at the second."""

    def __init__(self, first: int, last: int):
        alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
        self.clock = time.process_time if alone else time.perf_counter
        self.first, self.last, self.marks = first, last, []

    def before_update(self, step: int, loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
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
    return float("nan")  # it diverged before
