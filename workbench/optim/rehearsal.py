"""A short training of a copy, clipped or not, that records the ratios that AGC compares."""

import contextlib
import copy
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from workbench.errors import WorkbenchError
from workbench.memory_layout import CHANNELS_LAST, arrange_if_it_runs, arranged, faster
from workbench.optim.guarded_copies import copy_of
from workbench.optim.hooks import AGC

FAR = 20.0  # a loss above this many times the first is a divergence
FALL = 0.02  # a run has learnt if its loss falls by at least this share of the first losses


@dataclass
class Rehearsal:
    """The record of a short training.

    Attributes:
        losses: The loss of each step.
        seen: The ratios |G_i| / max(|W_i|, eps) of all clipped units, one tensor (units,) per step.
        diverged_at: The step, counted from 1, at which the loss was not finite or above 20 times the first. None if
            no step was.
    """

    losses: list[float] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)
    diverged_at: int | None = None

    @property
    def steps(self) -> int:
        """The number of steps that have a loss."""
        return len(self.losses)

    @property
    def learnt(self) -> bool:
        """Whether the last quarter's mean loss is at least 2 % below that of the first twelfth."""
        first = np.mean(self.losses[: max(self.steps // 12, 1)])
        last = np.mean(self.losses[-max(self.steps // 4, 1) :])
        return self.diverged_at is None and bool(last < first - FALL * abs(first))

    def ratios(self) -> Tensor:
        """Return the finite ratios of the second half, when the rate is at its peak.

        A run that learnt nothing returns those of its first half instead, from before it went wrong.

        Returns:
            Shape (units of all steps,).
        """
        half = (len(self.seen) + 1) // 2
        ratios = torch.cat(self.seen[-half:] if self.learnt else self.seen[:half])
        return ratios[ratios.isfinite()]


def rehearse(
    model: nn.Module,
    loader: Iterable,
    optimizer: Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    peaks: list[float],
    clip: float,
    eps: float,
    steps: int,
    seed: int,
    each_step: Callable[[], object],
) -> Rehearsal:
    """Train a copy until it ends or diverges.

    The learning rates warm up linearly over the first quarter of the steps.

    Args:
        model: The network to copy.
        loader: Gives batches (x, y).
        optimizer: Built on `model`. Groups whose "clip" is None are exempt.
        loss: `loss(model(x), y)` is differentiated.
        peaks: The peak learning rate of each parameter group.
        clip: The threshold of all groups that are not exempt, instead of their own. Infinity clips nothing.
        eps: Lower bound on |W_i| for groups without "clip_eps".
        steps: The number of steps.
        seed: Seed of all random draws.
        each_step: Called after each loss.

    Returns:
        The losses and the ratios of the run.

    Raises:
        WorkbenchError: If the first loss or its gradients are not finite or all 0, or if no clipped parameter has a
            gradient.
    """
    memo: dict = {}
    with seeded(seed, model, loader):
        model = copy_of(model, memo, if_sharded="Call suggest_clip before it.")
        loss = copy_of(loss, memo, if_sharded="Call suggest_clip before it.")
        optimizer = twin(optimizer, memo)
        if not model.training:  # in a model that trains, parts may be in evaluation mode on purpose
            model.train()
        for group in optimizer.param_groups:
            if is_clipped(group):
                group["clip"] = clip
            group.setdefault("clip_eps", eps)
        agc, device = AGC(optimizer), next(model.parameters()).device
        ramp, run = max(steps // 4, 1), Rehearsal()
        for step, (x, y) in zip(range(1, steps + 1), batches(loader), strict=False):
            set_rates(optimizer, [peak * min(step / ramp, 1.0) for peak in peaks])
            if step == 1:
                _arrange(model, optimizer, _to(x, device))
            value = loss(model(_to(x, device)), _to(y, device))
            run.losses.append(value.item())
            each_step()
            if not run.losses[-1] <= FAR * abs(run.losses[0]):  # also true for NaN
                run.diverged_at = step
                break
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            run.seen.append(agc.stats.ratios().float())
            _refuse_no_gradient(run.seen[-1])
    if not run.seen or not run.ratios().any():
        raise WorkbenchError(
            f"The first loss and its gradients must be finite and not all 0, got a first loss of {run.losses[0]:g}. "
            "Check the data and the weights."
        )
    return run


def _arrange(model: nn.Module, optimizer: Optimizer, x: object) -> None:
    """Arrange a copy and the state of its optimizer in the faster layout, if that is not what they have."""
    if not (isinstance(x, Tensor) and x.ndim == 4 and faster(x.device) == CHANNELS_LAST):
        return
    layout = arrange_if_it_runs(model, CHANNELS_LAST, x[:2])
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = arranged(value, layout)  # fused optimizers read it element by element


def _refuse_no_gradient(ratios: Tensor) -> None:
    if len(ratios) == 0:
        raise WorkbenchError(
            "`loss` gave no gradient to any parameter that is clipped. Build `optimizer` on the parameters of "
            "`model`, and let `loss` depend on them."
        )


def twin(optimizer: Optimizer, memo: dict) -> Optimizer:
    """Copy an optimizer onto the copied parameters in `memo`, without hooks.

    Args:
        optimizer: The original.
        memo: The memo of the `copy.deepcopy` that copied the parameters.

    Returns:
        The copy, with the attributes that torch's own copy leaves out.
    """
    copied = copy.deepcopy(optimizer, memo)
    for name, value in vars(optimizer).items():
        if name not in vars(copied) and not callable(value):  # a scheduler overwrites the attribute `step`
            setattr(copied, name, copy.deepcopy(value, memo))
    return copied


def is_clipped(group: dict) -> bool:
    """Return whether AGC clips this parameter group. A "clip" of None exempts it."""
    return group.get("clip", True) is not None


def set_rates(optimizer: Optimizer, rates: list[float]) -> None:
    """Set the learning rate of each group."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def batches(loader: Iterable) -> Iterator:
    """Yield pairs (x, y) without end. The loader starts again when it ends.

    Raises:
        WorkbenchError: If the loader is empty, cannot start again, or gives something else.
    """
    given = 0
    while True:
        before = given
        for batch in loader:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise WorkbenchError(f"`loader` must give pairs (x, y), got {type(batch).__name__}. Wrap the loader.")
            given += 1
            yield batch
        if given == 0:
            raise WorkbenchError("`loader` must give at least one batch, got 0. Check its data.")
        if given == before:
            raise WorkbenchError(
                f"`loader` ended after {given} batches and cannot start again. Use a list or a DataLoader instead of "
                "an iterator."
            )


@contextlib.contextmanager
def seeded(seed: int, model: nn.Module, loader: Iterable) -> Iterator[None]:
    """Seed all random draws inside, and restore every random state afterwards.

    A loader with a generator draws from that generator, whose state is restored, too.
    """
    device = next(model.parameters()).device
    generators = [getattr(loader, "generator", None), getattr(getattr(loader, "sampler", None), "generator", None)]
    before = [(g, g.get_state()) for g in generators if isinstance(g, torch.Generator)]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for generator, state in before:
            generator.set_state(state)


def _to(value, device: torch.device):
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
