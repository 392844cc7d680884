"""The exponential moving average of a model, which the paper evaluates beside the model itself.

Source: NFNet paper, section 4, and the authors' code: decay 0.99999 with the warm-up d = min(decay, (1 + t) / (10 +
t)), t the step from 0, so that the first steps do not drag the initial weights along. It starts as a copy.
"""

import copy

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.optim.scope import refuse_open


class EMA:
    """`update()` after every optimizer step; `model` is the average, in evaluation mode.

    Parameters and floating-point buffers (BatchNorm's statistics) are averaged in their own precision, counters copied.
    """

    def __init__(self, model: nn.Module, decay: float = 0.99999, warmup: bool = True):
        if not 0 <= decay < 1:
            raise WorkbenchError(f"`decay` (={decay}) must be at least 0 and below 1.")
        self.decay, self.warmup, self.steps = decay, warmup, 0
        self.source = model
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def decay_at(self, step: int) -> float:
        """d of the update with this number, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self) -> None:
        """average <- d * average + (1 - d) * model"""
        refuse_open([*self.source.parameters(), *self.model.parameters()], "EMA cannot average")
        weight = 1 - self.decay_at(self.steps)
        pairs = list(zip(_tensors(self.model), _tensors(self.source), strict=True))
        floating = [(a, b) for a, b in pairs if a.is_floating_point()]
        if floating:
            averages, current = zip(*floating, strict=True)
            torch._foreach_lerp_(list(averages), list(current), weight)
        for average, now in pairs:
            if not average.is_floating_point():
                average.copy_(now)
        self.steps += 1

    def state_dict(self) -> dict:
        return {"steps": self.steps, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.steps = state["steps"]
        self.model.load_state_dict(state["model"])


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
