"""Observers that a training calls while it runs, and the measurements that fill its tables.

A configuration selects the measurements of this file. Replays and timings pass their observers to `train`.
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
    """An observer of a running training. A subclass defines the methods that it needs."""

    def begin(self, model: nn.Module) -> None:
        """Look at the network before its first step, but not after a start from a checkpoint."""

    def before_update(self, step: int, loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Look at the loss () and the gradients before clipping and update.

        Changes of the optimizer's groups take effect in this step.
        """

    def after_update(self, step: int, model: nn.Module, lr: float) -> None:
        """Look at the network after the update of `step` with the learning rate `lr`."""

    def at_row(self, row: dict) -> None:
        """Look at a row of the history."""


class Measurement(Observer):
    """An observer that fills the table `name`, also across an interruption of the training.

    Args:
        every: Steps between rows.
    """

    name: str

    def __init__(self, every: int):
        self.every = every
        self._tables: list[pd.DataFrame] = []

    def table(self) -> pd.DataFrame:
        """Return all rows so far, with the column `step`."""
        return pd.concat(self._tables, ignore_index=True) if self._tables else pd.DataFrame(columns=["step"])

    def state_dict(self) -> dict:
        """Return all rows so far as plain lists."""
        return {"rows": self.table().to_dict("list")}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self._tables = [pd.DataFrame(state["rows"])] if state["rows"]["step"] else []


class Telemetry(Measurement):
    """AGC's statistics, one row per step and parameter.

    The norms stay on the device until `settle` reads them.

    Args:
        every: Steps between rows.
        stats: Returns the statistics of AGC in the last step.
    """

    name = "agc"

    def __init__(self, every: int, stats: Callable[[], AGCStats]):
        super().__init__(every)
        self.stats = stats
        self._unread: list[tuple[int, AGCStats]] = []

    def after_update(self, step: int, model: nn.Module, lr: float) -> None:
        """Keep the statistics of this step if it gets a row."""
        if step % self.every == 0:
            self._unread.append((step, self.stats()))

    def at_row(self, row: dict) -> None:
        """Read the norms, because a row of the history waits for the device anyway."""
        self.settle()

    def settle(self) -> None:
        """Read the norms from the device and make rows of them."""
        if self._unread:
            self._tables.append(table_of_steps(self._unread))
        self._unread.clear()

    def table(self) -> pd.DataFrame:
        """Return all rows so far."""
        self.settle()
        return super().table() if self._tables else table_of_steps([])


class _OnImages(Measurement):
    """A measurement on the same few images.

    The network is in training mode, without dropout and stochastic depth.

    Args:
        every: Steps between rows.
        images: Images (N, C, H, W) and labels (N,).
    """

    def __init__(self, every: int, images: Batch):
        super().__init__(every)
        self.images = images

    def begin(self, model: nn.Module) -> None:
        """Measure the network before its first step, as step 0."""
        self.after_update(0, model, lr=0.0)

    def after_update(self, step: int, model: nn.Module, lr: float) -> None:
        """Measure the network if this step gets a row."""
        if step % self.every == 0:
            with in_training(model):
                self._tables.append(self.measured(model, *self.images, lr).assign(step=step))

    def measured(self, model: nn.Module, x: Tensor, y: Tensor, lr: float) -> pd.DataFrame:
        """Return the rows of one step, without the column `step`."""
        raise NotImplementedError


class Signals(_OnImages):
    """Signal propagation forward and backward, one row per block.

    The gradient is that of the cross-entropy.
    """

    name = "signal"

    def measured(self, model: nn.Module, x: Tensor, y: Tensor, lr: float) -> pd.DataFrame:
        """Return one row per block, see `signal_propagation`."""

        def loss(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits.float(), y)

        return signal_propagation(model, x, backward=loss, dead=True, peak=True)


class Curvature(_OnImages):
    """Sharpness and the gradient noise scale, one row per step.

    Columns:

        sharpness, lr, lr_x_sharpness
        limit                     of lr_x_sharpness, for gradient descent with this momentum
        noise_scale               in images
        noise_low, noise_high     its interval at 95 %, in images

    A value that cannot be measured is NaN, for example if a weight is not finite.

    Args:
        every: Steps between rows.
        images: Images (N, C, H, W) and labels (N,).
        momentum: Of the optimizer. Above 0 it is Nesterov momentum.
    """

    name = "curvature"
    PARTS = 8  # batches for the noise scale

    def __init__(self, every: int, images: Batch, momentum: float):
        super().__init__(every, images)
        self.limit = stability_limit(momentum, nesterov=momentum > 0)

    def measured(self, model: nn.Module, x: Tensor, y: Tensor, lr: float) -> pd.DataFrame:
        """Return one row with the columns of the class."""
        row = {"lr": lr, "limit": self.limit}
        try:
            row["sharpness"] = hessian_eigenvalues(model, lambda m: F.cross_entropy(m(x), y))[0]
            size = len(x) // self.PARTS
            parts = list(zip(x.split(size), y.split(size), strict=True))[: self.PARTS]
            noise = gradient_noise_scale(model, F.cross_entropy, parts)
            row |= {"noise_scale": noise.noise_scale, "noise_low": noise.interval[0], "noise_high": noise.interval[1]}
        except WorkbenchError:  # the loss or a derivative is not finite, or Lanczos did not converge
            row.setdefault("sharpness", math.nan)
        row["lr_x_sharpness"] = lr * row["sharpness"]
        columns = ["sharpness", "lr", "lr_x_sharpness", "limit", "noise_scale", "noise_low", "noise_high"]
        return pd.DataFrame([row], columns=columns)


def measurements(
    config: TrainConfig, stats: Callable[[], AGCStats], images: Callable[[int], Batch]
) -> list[Measurement]:
    """Return the measurements of a configuration, in the order of their tables.

    Args:
        config: The configuration.
        stats: Returns the statistics of AGC in the last step.
        images: Returns that many validation images with labels, from the first on.
    """
    measured: list[Measurement] = []
    if config.telemetry_every:
        measured.append(Telemetry(config.telemetry_every, stats))
    if config.signal_every:
        measured.append(Signals(config.signal_every, images(64)))
    if config.curvature_every:
        measured.append(Curvature(config.curvature_every, images(256), config.momentum))
    return measured
