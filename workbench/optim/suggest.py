"""A threshold for AGC from one short run of a copy, for any optimizer.

Sources: NFNet paper, section 3 and its recipe. Seetharaman et al. 2020 (AutoClip) for a quantile of the ratios.

There are two kinds of optimizer:

- The step of SGD grows with the gradient. A clipped unit moves by at most `rate / (1 - momentum) * clip` of its length
  per step. The paper's recipe, 0.01 at rate 1.6 and momentum 0.9, makes that 0.16. This module aims at the same value.
- The step of Adam and Lion does not grow with the gradient, so clipping cannot bound it. It only sets how much more a
  step with a large gradient counts than a step with a small one. A threshold at a low quantile of
  |G_i| / max(|W_i|, eps) lets all steps count alike.

A constant gradient shows which kind an optimizer is, and its rate / (1 - momentum).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from workbench.bars import bar
from workbench.errors import WorkbenchError
from workbench.optim.rehearsal import Rehearsal, is_clipped, rehearse, seeded, set_rates, twin
from workbench.optim.telemetry import LADDER, _quantile
from workbench.optim.wrappers import layers_of, parameters_of

MOVE = 0.16  # share of its length that a unit may move per step, if the step grows with the gradient
EVEN = 0.1  # quantile of the ratios that is the threshold, if the step does not grow
LEAST_STEPS = 8


@dataclass(frozen=True)
class ClipSuggestion:
    """A threshold, and the range to search if there is time.

    Attributes:
        clip: The suggested threshold.
        low: The lower end of the range.
        high: The upper end of the range.
        confidence: "high", "medium" or "low".
        why: The reason for the threshold and the confidence.
        ladder: {threshold: share of the units that it would have clipped, from 0 to 1}. It describes the second half
            of the run without clipping, or its first half if that run learnt nothing.
        steps: The number of steps of all runs.
        diverged_at: The step, counted from 1, at which the run without clipping diverged. None if it did not.
    """

    clip: float
    low: float
    high: float
    confidence: str
    why: str
    ladder: dict[float, float]
    steps: int
    diverged_at: int | None

    def __str__(self) -> str:
        shares = "  ".join(f"{clip:g}: {share:.0%}" for clip, share in self.ladder.items())
        return (
            f"clip={self.clip:g}, search {self.low:g} to {self.high:g}; confidence {self.confidence}\n"
            f"  {self.why}\n"
            f"  units that a threshold would have clipped  {shares}\n"
            f"  {self.steps} steps of a copy"
        )


def suggest_clip(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    optimizer: Optimizer,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    lr: float | None = None,
    steps: int = 60,
    eps: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> ClipSuggestion:
    """Suggest a clipping threshold from a short training of a copy.

    The first run does not clip, and its ratios give the threshold. If that run diverges or learns nothing, a second run
    clips at this threshold. Each further run clips at a quarter of the last threshold, until one does not diverge. All
    runs together take at most 2 * `steps` steps.

    The model, the optimizer, the random state and a DataLoader's generator do not change. On a CPU equal calls give
    equal answers. Hooks of modules run in the copy, too.

    Args:
        model: The network.
        loader: Gives batches (x, y). It must be able to start again.
        optimizer: Any optimizer that AGC takes, built on `model`, with or without AGC. Groups whose "clip" is None are
            exempt.
        loss: `loss(model(x), y)` is differentiated.
        lr: The peak rate of the group with the largest rate. By default a group's peak is the largest of its lr,
            initial_lr and max_lr. A quarter of the steps leads up to the peak.
        steps: The length of a run, at least 8.
        eps: Lower bound on |W_i|. A group's "clip_eps" wins.
        seed: Seed of all random draws.
        progress: Whether to show a progress bar.

    Returns:
        The threshold, a range, and the reasons.

    Raises:
        WorkbenchError: If the loader is empty or cannot start again, the rate is 0, `steps` is below 8, or there is
            nothing to clip.
    """
    optimizer = _check(model, optimizer, lr, steps)
    peaks = _peak_rates(optimizer, lr)
    with bar(2 * steps, desc="suggest_clip", unit="step", shown=progress) as counter:
        start = (model, loader, optimizer, loss)
        settings = {"peaks": peaks, "eps": eps, "seed": seed, "each_step": counter.update}
        trial = rehearse(*start, clip=math.inf, steps=steps, **settings)
        with seeded(seed, model, loader):
            gain = _gain(optimizer, peaks)
        clip, low, high = _threshold(trial, gain)
        again: list[Rehearsal] = []
        left = 2 * steps - trial.steps
        while not trial.learnt and left >= LEAST_STEPS:
            again.append(rehearse(*start, clip=clip, steps=min(steps, left), **settings))
            left -= again[-1].steps
            if again[-1].diverged_at is None:
                break
            clip, low, high = clip / 4, low / 4, high / 4
    ratios = trial.ratios()
    confidence, why = _verdict(trial, again, gain, clip, _share_above(ratios, clip))
    return ClipSuggestion(
        *(float(f"{x:.2g}") for x in (clip, low, high)),
        confidence=confidence,
        why=why,
        ladder={rung: _share_above(ratios, rung) for rung in LADDER},
        steps=2 * steps - left,
        diverged_at=trial.diverged_at,
    )


def _threshold(trial: Rehearsal, gain: float | None) -> tuple[float, float, float]:
    """Return (threshold, low, high)."""
    ratios = trial.ratios()
    live = ratios[ratios > 0]  # dead units have no gradient
    if gain is None:
        # if more than a tenth of the units are dead, the quantile is 0
        clip = max(_quantile(ratios, EVEN), _quantile(live, 0.5) / 20)
        return clip, clip / 4, max(4 * clip, _quantile(ratios, 0.9))
    clip = MOVE / gain
    if trial.learnt:  # at a small rate this is above every ratio, so take only the rarest spikes, which is harmless
        clip = min(clip, _quantile(live, 0.99))
    return clip, clip / 4, 4 * clip


def _gain(optimizer: Optimizer, peaks: list[float]) -> float | None:
    """Measure by how much a constant gradient of 1 finally moves a weight per step.

    For SGD this is lr / (1 - momentum).

    Args:
        optimizer: The optimizer. It is copied.
        peaks: The learning rate of each group.

    Returns:
        The largest value of the clipped groups. None if a gradient of 2 moves no weight further than 1 does.
    """

    def pace(size: float) -> Tensor:
        toys = [nn.Parameter(torch.empty(2, 2, device=g["params"][0].device)) for g in optimizer.param_groups]
        memo = {id(p): toy for toy, group in zip(toys, optimizer.param_groups, strict=True) for p in group["params"]}
        copied = twin(optimizer, memo | {id(optimizer.state): defaultdict(dict)})
        for toy, group in zip(toys, copied.param_groups, strict=True):
            group["params"] = [toy]
            if "weight_decay" in group:
                group["weight_decay"] = 0.0
        set_rates(copied, peaks)
        for _ in range(300):
            for toy in toys:
                toy.data.fill_(1e-3)  # small, to keep the digits of a small step, but not 0, where some rules change
                toy.grad = torch.full_like(toy, size)
            copied.step()
        clipped = [toy for toy, group in zip(toys, optimizer.param_groups, strict=True) if is_clipped(group)]
        return torch.stack([(toy.detach() - 1e-3).abs().mean().cpu() for toy in clipped])

    slow, fast = pace(1.0), pace(2.0)
    grows = fast > 1.5 * slow
    return slow[grows].max().item() if grows.any() else None


def _verdict(
    trial: Rehearsal, again: list[Rehearsal], gain: float | None, clip: float, share: float
) -> tuple[str, str]:
    """Return (confidence, why)."""
    bound = f"This threshold lets no unit move by more than {MOVE:.0%} of its length per step"
    if trial.learnt and gain is None:
        return "medium", (
            "This optimizer's step does not grow with the gradient, so the threshold matters little. This one clips "
            f"{share:.0%} of the units, so steps count alike. A threshold above the range only removes spikes."
        )
    if trial.learnt and gain is not None and clip < MOVE / gain:
        return "high", (
            "The run without clipping learnt. Its rate is so small that 99% of the units moved by less than "
            f"{clip * gain:.2g} of their length per step. No threshold matters much. This one removes the rarest "
            "spikes."
        )
    if trial.learnt:
        return "high", f"The run without clipping learnt. {bound}, and would have clipped {share:.0%} of the units."
    outcome = "learnt nothing" if trial.diverged_at is None else f"diverged at step {trial.diverged_at}"
    outcome = f"The run without clipping {outcome}."
    if again[-1].diverged_at is not None:
        return "low", f"{outcome} With clipping, {len(again)} of {len(again)} runs diverged. Lower the learning rate."
    if not again[-1].learnt:
        return "low", f"{outcome} With this threshold it is stable but has not learnt yet. Give it more steps."
    return "medium", f"{outcome} With this threshold it learns." + (f" {bound}." if gain is not None else "")


def _share_above(ratios: Tensor, clip: float) -> float:
    return (ratios > clip).double().mean().item()


def _check(model: nn.Module, optimizer: Optimizer, lr: float | None, steps: int) -> Optimizer:
    """Return the optimizer that updates the weights, which may be inside a wrapper."""
    if steps < LEAST_STEPS:
        raise WorkbenchError(
            f"`steps` must be at least {LEAST_STEPS}, got {steps}. For most networks 60 steps are enough."
        )
    if lr is not None and not lr > 0:
        raise WorkbenchError(f"`lr` must be above 0, got {lr}. Give the peak rate of the training.")
    wrapper, optimizer = optimizer, layers_of(optimizer)[-1]
    if not parameters_of(wrapper) <= parameters_of(optimizer):
        raise WorkbenchError(
            f"`optimizer` must hold all its parameters in this process, but {type(wrapper).__name__} holds a part. "
            f"Call suggest_clip with a {type(optimizer).__name__} on the whole model."
        )
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    if not any(id(p) in trainable for group in optimizer.param_groups if is_clipped(group) for p in group["params"]):
        raise WorkbenchError(
            "`optimizer` holds no parameter of `model` that requires a gradient and is not exempt (clip=None). Build "
            "`optimizer` on `model`, and let at least one group be clipped."
        )
    return optimizer


def _peak_rates(optimizer: Optimizer, lr: float | None) -> list[float]:
    """Return the peak rate of each group. `lr`, if given, is that of the largest peak."""
    peaks = [max(float(group.get(k, 0.0)) for k in ("lr", "initial_lr", "max_lr")) for group in optimizer.param_groups]
    largest = max(peaks)
    if lr is not None:
        return [peak * lr / largest if largest > 0 else lr for peak in peaks]
    if not largest > 0:
        raise WorkbenchError(
            "The learning rate of `optimizer` must be above 0, got 0. Give the peak rate of the training as `lr`."
        )
    return peaks
