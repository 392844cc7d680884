"""The exponential moving average of a model. The paper evaluates it next to the model.

Source: NFNet paper, section 4, and the authors' code. The decay is 0.99999 with a warm-up over the steps t from 0:

    d = min(decay, (1 + t) / (10 + t))

The average starts as a copy, and the warm-up lets it forget the initial weights.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from workbench.errors import WorkbenchError
from workbench.optim.guarded_copies import copy_of, is_fully_sharded
from workbench.optim.scope import refuse_open
from workbench.optim.sharded import is_dtensor


class EMA:
    """Average a model over its training. Call `update()` after every optimizer step.

    Parameters and floating-point buffers (BatchNorm's statistics) are averaged in the precision they have. Counters and
    the singular vectors of spectral_norm are copied.

    With `fully_shard`, make EMA first and shard both: ``fully_shard(model)``, then ``fully_shard(ema.model)``.

    Args:
        model: The model in training.
        decay: Largest decay d, from 0 to below 1.
        warmup: Whether d starts at 0.1 and grows with the step. See the module's formula.

    Attributes:
        model: The average, in evaluation mode.
        source: The model in training.
        steps: The number of updates so far.

    Raises:
        WorkbenchError: If `decay` is below 0, or 1 and above, or the model is sharded or cannot be copied.
    """

    def __init__(self, model: nn.Module, decay: float = 0.99999, warmup: bool = True):
        if not 0 <= decay < 1:
            raise WorkbenchError(f"`decay` must be at least 0 and below 1, got {decay}. The paper uses 0.99999.")
        self.decay, self.warmup, self.steps = decay, warmup, 0
        self.source = model
        average = copy_of(model, {}, "Make EMA before it, then apply fully_shard to `ema.model`, too.")
        self.model = average.eval().requires_grad_(False)
        self._copied = _singular_vectors(model)

    def decay_at(self, step: int) -> float:
        """Return the decay d of update number `step`, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self) -> None:
        """Set average <- d * average + (1 - d) * model.

        Raises:
            WorkbenchError: If the model has other tensors than when EMA was made, or only one of the two is sharded.
        """
        pairs = self._pairs()
        refuse_open((tensor for _, *both in pairs for tensor in both), "EMA cannot average")
        weight = 1 - self.decay_at(self.steps)
        averaged: dict[bool, list[tuple[Tensor, Tensor]]] = {False: [], True: []}  # a call takes one kind of tensor
        for name, average, now in pairs:
            if average.is_floating_point() and name not in self._copied:
                averaged[is_dtensor(average)].append((average, now))
            else:
                average.copy_(now)
        for alike in averaged.values():
            if alike:
                averages, current = zip(*alike, strict=True)
                torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]: torch does not export it
                    list(averages), list(current), weight
                )
        self.steps += 1

    def _pairs(self) -> list[tuple[str, Tensor, Tensor]]:
        """Return (name, average, tensor of the model) for all parameters and buffers."""
        for model in (self.model, self.source):  # fully_shard leaves the root gathered after a forward pass alone
            for module in filter(is_fully_sharded, model.modules()):
                cast(Any, module).reshard()
        averages, current = _tensors(self.model), _tensors(self.source)
        if len(averages) != len(current):
            raise WorkbenchError(
                f"EMA averages {len(averages)} tensors, but the model now has {len(current)}. Make EMA after the last "
                "change of the model."
            )
        pairs = [(name, average, now) for (name, average), (_, now) in zip(averages, current, strict=True)]
        for name, average, now in pairs:
            if average.shape != now.shape:
                raise WorkbenchError(
                    f"EMA averages {name} of shape {tuple(average.shape)}, but the model's is now {tuple(now.shape)}. "
                    "Make EMA after the last change of the model."
                )
            if is_dtensor(average) != is_dtensor(now):
                raise WorkbenchError(
                    f"The model and its average must both be sharded, but {name} is a DTensor in only one of them. "
                    "After fully_shard(model), call fully_shard(ema.model) in the same way."
                )
        return pairs

    def state_dict(self) -> dict:
        """Return the number of updates and the average."""
        return {"steps": self.steps, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a `state_dict`."""
        self.steps = state["steps"]
        self.model.load_state_dict(state["model"])


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _singular_vectors(model: nn.Module) -> set[str]:
    """Return the names of buffers of spectral_norm. The mean of unit vectors is shorter, so the norm would be wrong."""
    names = set()
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, _SpectralNorm):
            names |= {f"{prefix}_u", f"{prefix}_v"}
        hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, SpectralNorm)]
        names |= {f"{prefix}{hook.name}_{vector}" for hook in hooks for vector in "uv"}
    return names
