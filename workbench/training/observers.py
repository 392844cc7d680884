"""Who watches a training: observers that it calls as it goes on, and those that measure something for a table.

A configuration asks for the measurements here; replays and timings hand in observers of their own.
"""

import math
from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.optim import AGCStats
from workbench.optim.telemetry import table_of_steps
from workbench.probes import gradient_noise_scale, hessian_eigenvalues, signal_propagation, stability_limit
from workbench.probes.signal import in_training
from workbench.training.config import TrainConfig
from workbench.training.inputs import Batch


class Observer:
    """Sees a training as it goes on. Each method does nothing: a subclass defines those that it needs."""

    def begin(self, model: nn.Module) -> None:
        """Look at the network before its first step. A training that goes on from a checkpoint does not begin."""

    def before_update(self, step: int, loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Look at the loss () and the gradient before it is clipped and used.

        What this sets in the optimizer's groups holds for this step.
        """

    def after_update(self, step: int, model: nn.Module, lr: float) -> None:
        """Look at the network after the update of `step`, which had the rate `lr`."""

    def at_row(self, row: dict) -> None:
        """Look at a row of the history."""


class Measurement(Observer):
    """An observer that makes the table `name`, and goes on with it after a training was killed."""

    name: str

    def __init__(self, every: int):
        self.every = every
        self._tables: list[pd.DataFrame] = []

    def table(self) -> pd.DataFrame:
        """All rows so far, with the column `step`."""
        return pd.concat(self._tables, ignore_index=True) if self._tables else pd.DataFrame(columns=["step"])

    def state_dict(self) -> dict:
        return {"rows": self.table().to_dict("list")}

    def load_state_dict(self, state: dict) -> None:
        self._tables = [pd.DataFrame(state["rows"])] if state["rows"]["step"] else []


class Telemetry(Measurement):
    """What AGC saw, one row a step and parameter: norms stay on the device until `settle` makes rows of them.

    Args:
        every: Steps between rows.
        stats: Returns what AGC saw in the last step.
    """

    name = "agc"

    def __init__(self, every: int, stats: Callable[[], AGCStats]):
        super().__init__(every)
        self.stats = stats
        self._unread: list[tuple[int, AGCStats]] = []

    def after_update(self, step: int, model: nn.Module, lr: float) -> None:
        if step % self.every == 0:
            self._unread.append((step, self.stats()))

    def at_row(self, row: dict) -> None:
        self.settle()

    def settle(self) -> None:
        """Read the norms from the device."""
        if self._unread:
            self._tables.append(table_of_steps(self._unread))
        self._unread.clear()

    def table(self) -> pd.DataFrame:
        self.settle()
        return super().table() if self._tables else table_of_steps([])


class _OnImages(Measurement):
    """A measurement of the network on the same few images, in training mode without what is dropped at random."""

    def __init__(self, every: int, images: Batch):
        super().__init__(every)
        self.images = images

    def begin(self, model: nn.Module) -> None:
        self.after_update(0, model, lr=0.0)

    def after_update(self, step: int, model: nn.Module, lr: float) -> None:
        if step % self.every == 0:
            with in_training(model):
                self._tables.append(self.measured(model, *self.images, lr).assign(step=step))

    def measured(self, model: nn.Module, x: Tensor, y: Tensor, lr: float) -> pd.DataFrame:
        raise NotImplementedError


class Signals(_OnImages):
    """Signal propagation forward and backward, one row a block; the gradient is that of the cross-entropy."""

    name = "signal"

    def measured(self, model: nn.Module, x: Tensor, y: Tensor, lr: float) -> pd.DataFrame:
        def loss(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits.float(), y)

        return signal_propagation(model, x, backward=loss, dead=True, peak=True)


class Curvature(_OnImages):
    """Sharpness and the gradient noise scale, one row a step.

    Columns: sharpness, lr, lr_x_sharpness, limit (of that product, for gradient descent with this momentum),
    noise_scale, noise_low and noise_high (95 %), in images. What cannot be measured is NaN, as of weights that are no
    numbers.
    """

    name = "curvature"
    PARTS = 8  # batches for the noise scale

    def __init__(self, every: int, images: Batch, momentum: float):
        super().__init__(every, images)
        self.limit = stability_limit(momentum, nesterov=momentum > 0)

    def measured(self, model: nn.Module, x: Tensor, y: Tensor, lr: float) -> pd.DataFrame:
        row = {"lr": lr, "limit": self.limit}
        try:
            row["sharpness"] = hessian_eigenvalues(model, lambda m: F.cross_entropy(m(x), y))[0]
            size = len(x) // self.PARTS
            parts = list(zip(x.split(size), y.split(size), strict=True))[: self.PARTS]
            noise = gradient_noise_scale(model, F.cross_entropy, parts)
            row |= {"noise_scale": noise.noise_scale, "noise_low": noise.interval[0], "noise_high": noise.interval[1]}
        except WorkbenchError:  # the loss, or a derivative, is not finite, or Lanczos found no answer
            row.setdefault("sharpness", math.nan)
        row["lr_x_sharpness"] = lr * row["sharpness"]
        columns = ["sharpness", "lr", "lr_x_sharpness", "limit", "noise_scale", "noise_low", "noise_high"]
        return pd.DataFrame([row], columns=columns)


def measurements(
    config: TrainConfig, stats: Callable[[], AGCStats], images: Callable[[int], Batch]
) -> list[Measurement]:
    """Return what a configuration measures, in the order of its tables.

    Args:
        config: The training's.
        stats: Returns what AGC saw in the last step.
        images: Returns the first so many validation images.
    """
    measured: list[Measurement] = []
    if config.telemetry_every:
        measured.append(Telemetry(config.telemetry_every, stats))
    if config.signal_every:
        measured.append(Signals(config.signal_every, images(64)))
    if config.curvature_every:
        measured.append(Curvature(config.curvature_every, images(256), config.momentum))
    return measured
