"""What a training sees of itself: the losses of its steps, what AGC clipped, how signals travel, curvature.

Losses and norms stay on the device until they are needed.
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


class LossWatch:
    """The losses of the steps and the norms of their gradients, left on the device and read only every so often, since
    reading waits for it.

    A step fails where its loss is not finite or above `limit`, or a gradient's norm is not finite; `step`, `loss` and
    `norms` (P,) are then those of the first that did. `failed` () is 1 on the device from that step on: a fused
    optimizer that has it as `found_inf` leaves the weights as the step found them, though nobody has looked yet.
    """

    def __init__(self, limit: float, every: int):
        self.limit, self.every = limit, every
        self.step, self.loss, self.norms = 0, 0.0, None
        self.failed: Tensor | None = None
        self._unread: list[tuple[Tensor, Tensor]] = []
        self._since_last: list[float] = []

    def diverged(self, step: int, loss: Tensor, norms: Tensor, look: bool) -> bool:
        """Takes the loss () and gradient norms (P,) of `step`, before its update; whether a step so far has failed
        (looked at now, or every so often)."""
        self._unread.append((loss, norms))
        if self.every > 1:
            fails = ((loss <= self.limit) & norms.isfinite().all()).logical_not().float()
            self.failed = fails if self.failed is None else torch.maximum(fails, self.failed.to(fails.device))
        if not look and step % self.every:
            return False
        losses, unread = zip(*self._unread, strict=True)
        values = torch.stack([loss.to(norms.device) for loss in losses])
        sound = torch.stack([norms.to(values.device) for norms in unread]).isfinite().all(1)
        values, sound = torch.stack([values, sound.to(values.dtype)]).tolist()
        for i, (value, finite) in enumerate(zip(values, sound, strict=True)):
            if not (value <= self.limit and finite):  # also where the loss is not a number
                self.step, self.loss, self.norms = step - len(values) + 1 + i, value, unread[i]
                return True
        self._since_last += values
        self._unread.clear()
        return False

    def state_dict(self) -> dict:
        return {
            "unread": [(loss.cpu(), norms.cpu()) for loss, norms in self._unread],
            "failed": self.failed,
            "since_last": list(self._since_last),
        }

    def load_state_dict(self, state: dict) -> None:
        self._unread = [(loss, norms) for loss, norms in state["unread"]]
        self.failed = state["failed"]
        self._since_last = list(state["since_last"])

    def mean_since_last(self) -> float:
        """The mean loss of the steps since this was last asked."""
        mean = sum(self._since_last) / len(self._since_last)
        self._since_last.clear()
        return mean


class Telemetry:
    """What AGC saw, every so many steps: norms on the device until `settle` makes rows of them."""

    def __init__(self, every: int | None):
        self.every = every
        self._unread: list[tuple[int, AGCStats]] = []
        self._tables: list[pd.DataFrame] = []

    def take(self, step: int, stats: AGCStats) -> None:
        if self.every and step % self.every == 0:
            self._unread.append((step, stats))

    def settle(self) -> None:
        if self._unread:
            self._tables.append(table_of_steps(self._unread))
        self._unread.clear()

    def state_dict(self) -> dict:
        return {"rows": self.table().to_dict("list") if self.every else {}}

    def load_state_dict(self, state: dict) -> None:
        self._tables = [pd.DataFrame(state["rows"])] if state["rows"].get("step") else []

    def table(self) -> pd.DataFrame:
        """One row a step and parameter."""
        self.settle()
        return pd.concat(self._tables, ignore_index=True) if self._tables else AGCStats().table()


class _Measured:
    """Something that is measured every so many steps on the same few images, a table each time, kept as one."""

    def __init__(self, every: int | None, model: nn.Module, images: Callable[[], tuple[Tensor, Tensor]]):
        self.every, self.model = every, model
        self.images = images() if every else None
        self._tables: list[pd.DataFrame] = []

    def take(self, step: int, lr: float) -> None:
        """Measures, where `step` is one of those, in training mode without what is dropped at random."""
        if self.every and step % self.every == 0:
            with in_training(self.model):
                self._tables.append(self.measured(*self.images, lr).assign(step=step))

    def measured(self, x: Tensor, y: Tensor, lr: float) -> pd.DataFrame:
        raise NotImplementedError

    def state_dict(self) -> dict:
        return {"rows": self.table().to_dict("list") if self._tables else {}}

    def load_state_dict(self, state: dict) -> None:
        self._tables = [pd.DataFrame(state["rows"])] if state["rows"] else []

    def table(self) -> pd.DataFrame:
        """All rows so far, with the column `step`."""
        return pd.concat(self._tables, ignore_index=True) if self._tables else pd.DataFrame(columns=["step"])


class Signals(_Measured):
    """Signal propagation forward and backward, one row a block; the gradient is that of the cross-entropy."""

    def measured(self, x: Tensor, y: Tensor, lr: float) -> pd.DataFrame:
        def loss(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits.float(), y)

        return signal_propagation(self.model, x, backward=loss, dead=True, peak=True)


class Curvature(_Measured):
    """Sharpness and the gradient noise scale, one row: sharpness, lr, lr_x_sharpness, limit (what the product must stay
    below for gradient descent with this momentum), noise_scale, noise_low and noise_high (95 %), in images. What cannot
    be measured, as of weights that are no numbers, is NaN."""

    PARTS = 8  # batches for the noise scale

    def __init__(self, every: int | None, model: nn.Module, images: Callable, momentum: float):
        super().__init__(every, model, images)
        self.limit = stability_limit(momentum, nesterov=momentum > 0)

    def measured(self, x: Tensor, y: Tensor, lr: float) -> pd.DataFrame:
        row = {"lr": lr, "limit": self.limit}
        try:
            row["sharpness"] = hessian_eigenvalues(self.model, lambda m: F.cross_entropy(m(x), y))[0]
            size = len(x) // self.PARTS
            parts = list(zip(x.split(size), y.split(size), strict=True))[: self.PARTS]
            noise = gradient_noise_scale(self.model, F.cross_entropy, parts)
            row |= {"noise_scale": noise.noise_scale, "noise_low": noise.interval[0], "noise_high": noise.interval[1]}
        except WorkbenchError:  # the loss, or a derivative, is not finite, or Lanczos found no answer
            row.setdefault("sharpness", math.nan)
        row["lr_x_sharpness"] = lr * row["sharpness"]
        columns = ["sharpness", "lr", "lr_x_sharpness", "limit", "noise_scale", "noise_low", "noise_high"]
        return pd.DataFrame([row], columns=columns)
