"""The exponential moving average of a model. The paper evaluates it next to the model.

Source: NFNet paper, section 4, and the authors' code. The decay is 0.99999 with a warm-up over the steps t from 0:

    d = min(decay, (1 + t) / (10 + t))

The average starts as a copy, and the warm-up lets it forget the initial weights.
"""

import copy

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.optim.scope import refuse_open


class EMA:
    """Average a model over its training. Call `update()` after every optimizer step.

    Parameters and floating-point buffers (BatchNorm's statistics) are averaged in the precision they have. Counters are
    copied.

    Args:
        model: The model in training.
        decay: Largest decay d, from 0 to below 1.
        warmup: Whether d starts at 0.1 and grows with the step. See the module's formula.

    Attributes:
        model: The average, in evaluation mode.
        source: The model in training.
        steps: The number of updates so far.

    Raises:
        WorkbenchError: If `decay` is below 0, or 1 and above.
    """

    def __init__(self, model: nn.Module, decay: float = 0.99999, warmup: bool = True):
        if not 0 <= decay < 1:
            raise WorkbenchError(f"`decay` must be at least 0 and below 1, got {decay}. The paper uses 0.99999.")
        self.decay, self.warmup, self.steps = decay, warmup, 0
        self.source = model
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def decay_at(self, step: int) -> float:
        """Return the decay d of update number `step`, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self) -> None:
        """Set average <- d * average + (1 - d) * model."""
        refuse_open([*self.source.parameters(), *self.model.parameters()], "EMA cannot average")
        weight = 1 - self.decay_at(self.steps)
        pairs = list(zip(_tensors(self.model), _tensors(self.source), strict=True))
        floating = [(a, b) for a, b in pairs if a.is_floating_point()]
        if floating:
            averages, current = zip(*floating, strict=True)
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]: torch does not export it
                list(averages), list(current), weight
            )
        for average, now in pairs:
            if not average.is_floating_point():
                average.copy_(now)
        self.steps += 1

    def state_dict(self) -> dict:
        """Return the number of updates and the average."""
        return {"steps": self.steps, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a `state_dict`."""
        self.steps = state["steps"]
        self.model.load_state_dict(state["model"])


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
