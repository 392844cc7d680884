"""Record every step of a replay, and change the training for a fork."""

import math

import pandas as pd
import torch
from torch import Tensor, nn

from workbench.optim import AGC
from workbench.optim.norms import unit_norms
from workbench.optim.units import units_of
from workbench.training import TrainConfig
from workbench.training.cause import largest_ratios
from workbench.training.observers import Observer
from workbench.training.setup import groups_of

SEEN_AFTER = {"cpu": 0}  # steps until a training notices that it diverged, by device
SEEN_AFTER_ELSEWHERE = 10


class Enough(Exception):
    """Ends a training after the last step to record."""


class Recorder(Observer):
    """Records the steps from `first` to `last`.

    Numbers stay on the device until a table is read.

    Args:
        config: Configuration of the recorded training.
        first: First step to record.
        last: Last step to record. The training then ends with `Enough`.
        clip: AGC threshold of a fork, from step `first` on. None: unchanged.
        lr: Peak learning rate of a fork, likewise. The shape of the schedule stays.
    """

    def __init__(
        self, config: TrainConfig, first: int, last: int, *, clip: float | None = None, lr: float | None = None
    ):
        self.config, self.first, self.last = config, first, last
        self.clip, self.rate = clip, 1.0 if lr is None else lr / config.lr
        self.names: list[str] = []
        self.began = 0  # first step of the training, after its checkpoint
        self._seen: list[tuple[int, Tensor, float, Tensor]] = []
        self._updates: dict[int, Tensor] = {}
        self._before: list[Tensor] | None = None

    def before_update(self, step: int, loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Record loss, rate and ratios of a step, after the fork's changes."""
        if step > self.last + SEEN_AFTER.get(loss.device.type, SEEN_AFTER_ELSEWHERE):
            raise Enough
        if not self.names:
            self.names, self.began = [name for name, _ in model.named_parameters()], step
        if step == self.first and self.clip is not None:
            self._set_clip(model, optimizer)
        if self.first <= step <= self.last:
            for group in optimizer.param_groups:
                group["lr"] *= self.rate  # the schedule sets it again for the next step
            rate = optimizer.param_groups[0]["lr"]
            self._seen.append((step, loss.detach().clone(), rate, largest_ratios(model, self.config.clip_eps)))
            self._before = [p.detach().clone() for p in model.parameters()]

    def _set_clip(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Give the groups the thresholds that `train` gives them with this one."""
        heads = [n for g in optimizer.param_groups if g["name"].startswith("classifier") for n in g["names"]]
        groups = groups_of(model, self.config.replace(clip=self.clip, clip_norm=None), classifier=heads)
        for group, wanted in zip(optimizer.param_groups, groups, strict=True):
            group["clip"] = wanted["clip"]
        if self.config.clip is None:
            AGC(optimizer, eps=self.config.clip_eps)

    @torch.no_grad()
    def after_update(self, step: int, model: nn.Module, lr: float) -> None:
        """Record how far the step moved each parameter."""
        if self._before is None:
            return
        before, self._before = self._before, None
        eps, layouts = self.config.clip_eps, units_of(model)
        moved = [
            (unit_norms(p - old, layouts.get(id(p))) / unit_norms(old, layouts.get(id(p))).clamp_min(eps)).max()
            for p, old in zip(model.parameters(), before, strict=True)
        ]
        self._updates[step] = torch.stack(moved)

    def steps(self) -> pd.DataFrame:
        """Return one row per step: step, loss, lr."""
        rows = [{"step": step, "loss": finite_or_nan(loss.item()), "lr": lr} for step, loss, lr, _ in self._seen]
        return pd.DataFrame(rows, columns=["step", "loss", "lr"])

    def ratios(self) -> pd.DataFrame:
        """Return one row per step and parameter: step, parameter, ratio, update."""
        rows = []
        for step, _, _, ratios in self._seen:
            moved = self._updates[step].tolist() if step in self._updates else [math.nan] * len(self.names)
            for name, ratio, update in zip(self.names, ratios.tolist(), moved, strict=True):
                rows.append(
                    {"step": step, "parameter": name, "ratio": finite_or_nan(ratio), "update": finite_or_nan(update)}
                )
        return pd.DataFrame(rows, columns=["step", "parameter", "ratio", "update"])


def finite_or_nan(value: float) -> float:
    """Return the value, or NaN if it is infinite."""
    return value if math.isfinite(value) else math.nan
