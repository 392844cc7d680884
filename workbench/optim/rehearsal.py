"""A short training of a copy, clipped or not, that writes down what AGC looks at; the originals are left as found."""

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
from workbench.optim.agc import AGC

FAR = 20.0  # times the first loss is a divergence
FALL = 0.02  # of the first losses is learning


@dataclass
class Rehearsal:
    """The loss of each step, and the ratios |G_i| / max(|W_i|, eps) of all clipped units, one tensor (units,) a step.

    `diverged_at` is the step, counted from 1, at which the loss was not finite or above 20 times the first.
    """

    losses: list[float] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)
    diverged_at: int | None = None

    @property
    def steps(self) -> int:
        return len(self.losses)

    @property
    def learnt(self) -> bool:
        """Whether the last quarter's mean loss is at least 2 % below that of the first twelfth."""
        first = np.mean(self.losses[: max(self.steps // 12, 1)])
        last = np.mean(self.losses[-max(self.steps // 4, 1) :])
        return self.diverged_at is None and bool(last < first - FALL * abs(first))

    def ratios(self) -> Tensor:
        """Of the second half, when the rate is at its peak; of the first, before it went wrong, where nothing was
        learnt."""
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
    """Trains a copy until it ends or diverges; a quarter of the steps leads up to `peaks`, the rate of each group.

    Groups whose "clip" is None are exempt, all others get `clip` (inf: none), whatever theirs is.
    """
    memo: dict = {}
    with seeded(seed, model, loader):
        model, loss = copy.deepcopy((model, loss), memo)
        optimizer = twin(optimizer, memo)
        if not model.training:  # where it is, a part of it may be in evaluation mode on purpose
            model.train()
        for group in optimizer.param_groups:
            if is_clipped(group):
                group["clip"] = clip
            group.setdefault("clip_eps", eps)
        agc, device = AGC(optimizer), next(model.parameters()).device
        ramp, run = max(steps // 4, 1), Rehearsal()
        for step, (x, y) in zip(range(1, steps + 1), batches(loader), strict=False):
            set_rates(optimizer, [peak * min(step / ramp, 1.0) for peak in peaks])
            value = loss(model(_to(x, device)), _to(y, device))
            run.losses.append(value.item())
            each_step()
            if not run.losses[-1] <= FAR * abs(run.losses[0]):  # NaN, too
                run.diverged_at = step
                break
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            run.seen.append(agc.stats.ratios().float())
            _refuse_no_gradient(run.seen[-1])
    if not run.seen or not run.ratios().any():
        raise WorkbenchError(
            f"the first loss (={run.losses[0]:g}) and its gradients must be finite, and not all 0: look at the data "
            "and the weights."
        )
    return run


def _refuse_no_gradient(ratios: Tensor) -> None:
    if len(ratios) == 0:
        raise WorkbenchError(
            "`loss` gave no gradient to any parameter that is clipped: build `optimizer` on the parameters of "
            "`model`, and let `loss` depend on them."
        )


def twin(optimizer: Optimizer, memo: dict) -> Optimizer:
    """A copy on the parameters that `memo` has, without hooks: torch copies state and groups, and forgets the rest."""
    made = copy.deepcopy(optimizer, memo)
    for name, value in vars(optimizer).items():
        if name not in vars(made) and not callable(value):  # a scheduler puts its own `step` there
            setattr(made, name, copy.deepcopy(value, memo))
    return made


def is_clipped(group: dict) -> bool:
    """Whether AGC clips this parameter group: "clip" None exempts it."""
    return group.get("clip", True) is not None


def set_rates(optimizer: Optimizer, rates: list[float]) -> None:
    """Sets the learning rate of each group."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def batches(loader: Iterable) -> Iterator:
    """Pairs (x, y) without end.

    Raises: WorkbenchError for a loader that is empty, that cannot start again, or that gives something else.
    """
    given = 0
    while True:
        before = given
        for batch in loader:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise WorkbenchError(f"`loader` must give pairs (x, y), not {type(batch).__name__}: wrap it.")
            given += 1
            yield batch
        if given == 0:
            raise WorkbenchError("`loader` is empty: give one with at least one batch.")
        if given == before:
            raise WorkbenchError(
                f"`loader` ended after {given} batches and cannot start again: give a list or a DataLoader, "
                "not an iterator."
            )


@contextlib.contextmanager
def seeded(seed: int, model: nn.Module, loader: Iterable) -> Iterator[None]:
    """Every draw inside comes from `seed`, or from the loader's own generator, and is taken back."""
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
