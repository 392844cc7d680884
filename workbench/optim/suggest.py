"""A threshold for AGC from one short run of a copy, for any optimizer.

Sources: NFNet paper, section 3 and its recipe; Seetharaman et al. 2020 (AutoClip) for a quantile of what was seen.

Where the step grows with the gradient, as in SGD, a clipped unit moves by at most `rate / (1 - momentum) * clip` of its
length a step. The paper's recipe, 0.01 at rate 1.6 and momentum 0.9, makes that 0.16, and so does this. Where it does
not, as in Adam and Lion, clipping cannot bound the step; it only says how much more a step with a large gradient counts
than one with a small gradient. A low quantile of |G_i| / max(|W_i|, eps) lets them count alike.

Which of the two an optimizer is, and its rate / (1 - momentum), is found by handing it a constant gradient.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from workbench.errors import WorkbenchError
from workbench.optim.rehearsal import Rehearsal, is_clipped, rehearse, seeded, set_rates, twin
from workbench.optim.telemetry import LADDER, _quantile

MOVE = 0.16  # of its length, that a unit may move in a step where the step grows with the gradient
EVEN = 0.1  # the quantile of the ratios where it does not
LEAST_STEPS = 8


@dataclass(frozen=True)
class ClipSuggestion:
    """A threshold, and the range to search where there is time for more.

    `confidence` is high, medium or low, and `why` says what it rests on. `ladder` {threshold: share of the units that
    it would have clipped, from 0 to 1} is of the second half of the run without clipping (of its first half where that
    learnt nothing). `steps` counts all runs; `diverged_at` is the step, counted from 1, at which the run without
    clipping diverged, None where it did not.
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
    """Trains a copy of `model` and `optimizer` without clipping and reads a threshold off what it saw.

    Only where that run diverges or learns nothing, a second one clips at the threshold found, and a third at a quarter
    of it where that diverges, and so on; all runs together take at most 2 * `steps` steps.

    Args: `loader` gives batches (x, y), from the start again when it ends; `optimizer` is any that AGC takes, built on
    `model`, with or without an AGC of its own; groups whose "clip" is None are exempt, "clip_eps" wins over `eps`.
    `loss(model(x), y)` is differentiated; hooks of modules run in the copy, too. `lr` is the peak rate of the largest
    group, by default the largest of the group's lr, initial_lr and max_lr; a quarter of the steps leads up to it.
    The model, the optimizer, the random state and a DataLoader's generator are left as found; on a CPU equal calls give
    equal answers.
    Raises: WorkbenchError for an empty loader, one that cannot start again, a rate of 0, fewer than 8 steps, and where
    there is nothing to clip.
    """
    _check(model, optimizer, lr, steps)
    peaks = _peak_rates(optimizer, lr)
    with tqdm(total=2 * steps, desc="suggest_clip", unit="step", leave=False, disable=not progress) as bar:
        start = (model, loader, optimizer, loss)
        settings = {"peaks": peaks, "eps": eps, "seed": seed, "each_step": bar.update}
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
    """(threshold, low, high)."""
    ratios = trial.ratios()
    live = ratios[ratios > 0]  # dead units have no gradient
    if gain is None:
        clip = max(_quantile(ratios, EVEN), _quantile(live, 0.5) / 20)  # more than a tenth may be dead
        return clip, clip / 4, max(4 * clip, _quantile(ratios, 0.9))
    clip = MOVE / gain
    if trial.learnt:  # at a small rate that is above every ratio: take the rarest spikes, which is harmless
        clip = min(clip, _quantile(live, 0.99))
    return clip, clip / 4, 4 * clip


def _gain(optimizer: Optimizer, peaks: list[float]) -> float | None:
    """What a constant gradient of 1 moves a weight by, a step, in the end: lr / (1 - momentum) for SGD, of the clipped
    group in which it is largest. None where a gradient of 2 moves it no further."""

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
                toy.data.fill_(1e-3)  # small, for the digits of a small step; not 0, where some rules change
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
    """(confidence, why)."""
    bound = f"it lets no unit move by more than {MOVE:.0%} of its length a step"
    if trial.learnt and gain is None:
        return "medium", (
            "this optimizer's step does not grow with the gradient, so the threshold matters little; this one clips "
            f"{share:.0%} of the units, so that steps count alike. Above the range it only takes out spikes."
        )
    if trial.learnt and clip < MOVE / gain:
        return "high", (
            f"the run without clipping learnt, at so small a rate that 99% of the units moved by less than "
            f"{clip * gain:.2g} of their length a step: no threshold matters much; this one takes the rarest spikes."
        )
    if trial.learnt:
        return "high", f"the run without clipping learnt; {bound}, and would have clipped {share:.0%} of the units."
    went = "learnt nothing" if trial.diverged_at is None else f"diverged at step {trial.diverged_at}"
    went = f"the run without clipping {went}"
    if again[-1].diverged_at is not None:
        return "low", f"{went}; with clipping {len(again)} more diverged: lower the learning rate."
    if not again[-1].learnt:
        return "low", f"{went}; with this threshold it is stable but has not learnt yet: give it more steps."
    return "medium", f"{went}; with this threshold it learns" + (f": {bound}." if gain is not None else ".")


def _share_above(ratios: Tensor, clip: float) -> float:
    return (ratios > clip).double().mean().item()


def _check(model: nn.Module, optimizer: Optimizer, lr: float | None, steps: int) -> None:
    if steps < LEAST_STEPS:
        raise WorkbenchError(f"`steps` (={steps}) must be at least {LEAST_STEPS}; 60 are enough for most.")
    if lr is not None and not lr > 0:
        raise WorkbenchError(f"`lr` (={lr}) must be above 0: give the peak rate of the training.")
    if not isinstance(optimizer, Optimizer):
        raise WorkbenchError(
            f"`optimizer` must be a torch.optim.Optimizer built on `model`, not {type(optimizer).__name__}."
        )
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    if not any(id(p) in trainable for group in optimizer.param_groups if is_clipped(group) for p in group["params"]):
        raise WorkbenchError(
            "there is nothing to clip: no group of `optimizer` holds a parameter of `model` that requires a gradient "
            "and is not exempt (clip=None)."
        )


def _peak_rates(optimizer: Optimizer, lr: float | None) -> list[float]:
    """Of each group; `lr` is that of the largest."""
    peaks = [max(float(group.get(k, 0.0)) for k in ("lr", "initial_lr", "max_lr")) for group in optimizer.param_groups]
    largest = max(peaks)
    if lr is not None:
        return [peak * lr / largest if largest > 0 else lr for peak in peaks]
    if not largest > 0:
        raise WorkbenchError("the learning rate of `optimizer` is 0: give the peak rate of the training as `lr`.")
    return peaks
