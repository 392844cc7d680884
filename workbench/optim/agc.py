"""Adaptive gradient clipping: no unit's gradient may exceed `clip` times the norm of its weights.

Source: NFNet paper, section 3 (equation 4), and the authors' code:  for every unit i of a parameter W with gradient G,

    G_i <- clip * max(|W_i|, eps) / |G_i| * G_i    if    |G_i| > clip * max(|W_i|, eps)

A unit is one index of dimension 0 (a row of a Linear, a filter of a Conv, a row of an Embedding or of a fused qkv);
what is a scalar or a vector after removing its size-1 axes is one unit (a bias, a gain, a skip gain), as the authors
have it.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.errors import WorkbenchError


def unitwise_norm(x: Tensor) -> Tensor:
    """The norm of every unit of `x`, in at least float32: shape () for one unit, (O, 1, ..., 1) otherwise, so it
    broadcasts."""
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if x.squeeze().ndim <= 1:
        return torch.linalg.vector_norm(x)
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)


@dataclass
class AGCStats:
    """What one clipping saw: the norms of all units, still on their device; numbers are made only when asked for.

    `grad_norms` and `max_norms` (units,) are |G_i| and clip * max(|W_i|, eps), one tensor per device and precision.
    """

    grad_norms: list[Tensor] = field(default_factory=list)
    max_norms: list[Tensor] = field(default_factory=list)
    ratios: list[Tensor] = field(default_factory=list)  # |G_i| / max(|W_i|, eps)

    def clipped_share(self) -> float:
        """The share of units whose gradient was scaled down, from 0 to 1 (0 where there was nothing to clip)."""
        units = sum(g.numel() for g in self.grad_norms)
        return sum((g > m).sum().item() for g, m in zip(self.grad_norms, self.max_norms, strict=True)) / max(units, 1)

    def ratio_quantile(self, q: float) -> float:
        """The q-quantile over units of |G_i| / max(|W_i|, eps), by the nearest unit above; 0 without units."""
        ratios = torch.cat([r.double().cpu() for r in self.ratios]) if self.ratios else torch.zeros(1)
        return ratios.sort().values[min(int(q * ratios.numel()), ratios.numel() - 1)].item()


@torch.no_grad()
def clip_grad_agc_(params: Tensor | Iterable[Tensor], clip: float = 0.01, eps: float = 1e-3) -> AGCStats:
    """Clips the gradients of `params` in place, unit by unit; parameters without a gradient are passed over.

    Args: `params` of any rank; `clip` the paper's lambda; `eps` the floor of |W_i|, which lets zero-initialised ones
    move.
    Returns: the norms it has seen, as AGCStats.
    Raises: WorkbenchError for a clip or eps that is not positive, and for sparse, complex or sharded gradients.
    """
    params = [params] if isinstance(params, Tensor) else list(params)
    return _clip([(p, clip) for p in params], eps)


def _clip(parts: list[tuple[Tensor, float]], eps: float) -> AGCStats:
    """The rule of `clip_grad_agc_` for parameters that each bring their threshold, in few operations over all of
    them."""
    _check_positive("eps", eps)
    stats = AGCStats()
    kinds: dict[tuple, list[tuple[Tensor, float]]] = {}
    seen = set()
    for p, clip in parts:
        _check_positive("clip", clip)
        if p.grad is None or id(p) in seen or p.numel() == 0:  # a shared parameter is clipped once
            continue
        seen.add(id(p))
        _check_dense(p.grad)
        kinds.setdefault((p.device, p.dtype, p.grad.dtype), []).append((p, clip))

    for members in kinds.values():
        grads = [p.grad for p, _ in members]
        g_norms = [unitwise_norm(g) for g in grads]
        w_norms = [unitwise_norm(p) for p, _ in members]
        g_norm = torch.cat([n.reshape(-1) for n in g_norms])  # (units,)
        w_norm = torch.cat([n.reshape(-1) for n in w_norms]).clamp_min(eps)
        clips = {clip for _, clip in members}
        if len(clips) == 1:
            max_norm = w_norm * clips.pop()
        else:
            max_norm = w_norm * torch.cat(
                [torch.full((n.numel(),), clip) for n, (_, clip) in zip(g_norms, members, strict=True)]
            ).to(w_norm)
        factor = torch.where(g_norm > max_norm, max_norm / g_norm.clamp_min(1e-6), 1.0)
        factors = [f.view(n.shape) for f, n in zip(factor.split([n.numel() for n in g_norms]), g_norms, strict=True)]
        for grad, f in zip(grads, factors, strict=True):
            grad.mul_(f)
        stats.grad_norms.append(g_norm)
        stats.max_norms.append(max_norm)
        stats.ratios.append(g_norm / w_norm)
    return stats


class AGC:
    """Clips before every step of `optimizer`, which must step on dense `.grad`:  AGC(torch.optim.SGD(...), clip=0.01).

    A parameter group's own "clip" wins over the argument, and None there exempts it (see `param_groups`). Gradients
    must be final when `step` is called: all-reduced, accumulated, and unscaled where a GradScaler is used. `stats`
    holds the last step's AGCStats; `remove()` takes the clipping off again.
    Raises: WorkbenchError at construction for LBFGS and SparseAdam, and in `step` for a closure or scaled gradients.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip: float = 0.01, eps: float = 1e-3):
        if isinstance(optimizer, torch.optim.LBFGS | torch.optim.SparseAdam):
            raise WorkbenchError(
                "AGC needs an optimizer that steps once on dense gradients, "
                f"but got {type(optimizer).__name__}: use SGD or AdamW."
            )
        _check_positive("clip", clip)
        _check_positive("eps", eps)
        own = {g["clip"] for g in optimizer.param_groups if g.get("clip") is not None}
        if own - {clip}:
            warnings.warn(
                f"the parameter groups bring their own clip {sorted(own)}, which wins over clip={clip}", stacklevel=2
            )
        self.optimizer, self.clip, self.eps = optimizer, clip, eps
        self.stats = AGCStats()
        self._hook = optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if kwargs.get("closure") is not None or any(a is not None for a in args[1:]):
            raise WorkbenchError(
                "AGC clips before `step`, so a closure would compute gradients after it: "
                "call backward() yourself, then step()."
            )
        if getattr(optimizer, "grad_scale", None) is not None:
            raise WorkbenchError(
                "AGC needs unscaled gradients: call scaler.unscale_(optimizer) before scaler.step(optimizer)."
            )
        self.stats = _clip(
            [
                (p, group.get("clip", self.clip))
                for group in optimizer.param_groups
                if group.get("clip", self.clip) is not None
                for p in group["params"]
            ],
            self.eps,
        )

    def remove(self) -> None:
        """Leaves the optimizer as it was."""
        self._hook.remove()


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise WorkbenchError(
            f"`{name}` (={value}) must be above 0; to clip nothing, leave AGC out or exempt the group with clip=None."
        )


def _check_dense(grad: Tensor) -> None:
    if grad.layout != torch.strided:
        raise WorkbenchError("AGC needs dense gradients, but got a sparse one: build the Embedding with sparse=False.")
    if grad.is_complex():
        raise WorkbenchError(
            f"AGC needs real gradients, but got {grad.dtype}: view the parameter as real with torch.view_as_real."
        )
    if type(grad).__name__ == "DTensor":
        raise WorkbenchError(
            "AGC needs whole gradients, but got a sharded DTensor: clip before sharding, or train with DDP."
        )
