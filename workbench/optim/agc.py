"""Adaptive gradient clipping: a unit's gradient norm is at most `clip` times its weights'.

Source: NFNet paper, section 3 (equation 4), and the authors' code. For every unit i of a parameter W with gradient G:

    G_i <- clip * max(|W_i|, eps) / |G_i| * G_i    if    |G_i| > clip * max(|W_i|, eps)

A unit is one index of dimension 0: a row of a Linear, an Embedding or a fused qkv, or a filter of a Conv1d to Conv3d.
A parameter that is a scalar or a vector after removing its size-1 axes is one unit, as in the authors' code. Examples
are a bias, a gain and a skip gain.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.optim.scope import refuse_open
from workbench.optim.sharded import Local, is_one_unit, local_part, sum_over_shards
from workbench.optim.telemetry import AGCStats

Clip = float | Callable[[int], float]  # a number, or a function of the step, counted from 0


def unitwise_norm(x: Tensor) -> Tensor:
    """Compute the norm of every unit of `x`, in at least float32.

    Args:
        x: A tensor of any rank, (O, ...).

    Returns:
        Shape () if `x` is one unit, else (O, 1, ..., 1), which broadcasts against `x`.
    """
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if is_one_unit(x):
        return torch.linalg.vector_norm(x)
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)


def clip_grad_agc_(params: Tensor | Iterable[Tensor], clip: float = 0.01, eps: float = 1e-3) -> AGCStats:
    """Clip gradients in place, unit by unit.

    Args:
        params: Parameters of any rank, or DTensors as `fully_shard` makes them. Those without a gradient are skipped.
        clip: The paper's lambda.
        eps: Lower bound on |W_i|, so that zero-initialised units can move.

    Returns:
        The norms of this call.

    Raises:
        WorkbenchError: If `clip` or `eps` is not positive, a gradient is sparse or complex, or a DTensor is placed in
            another way.
    """
    params = [params] if isinstance(params, Tensor) else list(params)
    return _clip([_Clipped(p, str(i), clip, eps) for i, p in enumerate(params)])


class _Clipped(NamedTuple):
    """A parameter, its name, and its clipping rule."""

    p: Tensor
    name: str
    clip: float
    eps: float


LARGE = 2**16  # elements of a gradient, above which the CPU rewrites only the clipped rows


@torch.no_grad()
def _clip(parts: list[_Clipped]) -> AGCStats:
    """Apply the rule in few operations over all parameters of one device and precision."""
    for clip, eps in {(part.clip, part.eps) for part in parts}:
        _check_positive("clip", clip)
        _check_positive("eps", eps)
    refuse_open([part.p for part in parts], "AGC cannot clip")
    kinds: dict[tuple, list[tuple[_Clipped, Local]]] = {}
    seen = set()  # a shared parameter is clipped once
    for part in parts:
        if part.p.grad is None or id(part.p) in seen or part.p.numel() == 0:
            continue
        seen.add(id(part.p))
        local = local_part(part.p, part.name)
        kinds.setdefault((local.weight.device, local.weight.dtype, local.grad.dtype), []).append((part, local))
    stats = AGCStats(order=[part.name for part in parts])
    for members in kinds.values():
        _clip_together(members, stats)
    return stats


def _clip_together(members: list[tuple[_Clipped, Local]], stats: AGCStats) -> None:
    members = sorted(members, key=lambda member: member[1].one_unit)  # matrices first, then parameters of one unit
    parts, locals_ = [part for part, _ in members], [local for _, local in members]
    rows = sum(not local.one_unit for local in locals_)
    grads, weights = [local.grad for local in locals_], [local.weight for local in locals_]
    g_norms, w_norms = _norms(grads, rows), _norms(weights, rows)
    sum_over_shards(locals_, [g_norms, w_norms])
    sizes = [norm.numel() for norm in g_norms]
    g_norm, w_norm = _flat(g_norms, rows), _flat(w_norms, rows)  # (units,)
    w_norm = _at_least(w_norm, [part.eps for part in parts], sizes)
    max_norm = w_norm * _spread([part.clip for part in parts], sizes, w_norm)
    factor = torch.where(g_norm > max_norm, max_norm / g_norm.clamp_min(1e-6), 1.0)
    units = sum(sizes[:rows])
    for grad, f in zip(grads, factor[:units].split(sizes[:rows]), strict=False):
        _scale_rows(grad, f)
    whole, factors = grads[rows:], factor[units:].unbind()
    if whole and whole[0].dtype == factor.dtype:
        torch._foreach_mul_(whole, factors)  # pyright: ignore[reportPrivateImportUsage]: torch does not export it
    else:  # half precision: a factor of the gradient's precision would round twice
        for grad, f in zip(whole, factors, strict=True):
            grad.mul_(f)
    stats.add([part.name for part in parts], sizes, g_norm, w_norm, max_norm)


def _scale_rows(grad: Tensor, factor: Tensor) -> None:
    """Multiply grad (O, ...) by factor (O,) in place."""
    shape = (-1, *[1] * (grad.ndim - 1))
    if grad.numel() > LARGE and grad.device.type == "cpu" and not torch.compiler.is_compiling():
        (clipped,) = (factor < 1).nonzero(as_tuple=True)
        if 2 * len(clipped) < len(factor):
            rows = grad.index_select(0, clipped).mul_(factor[clipped].view(shape))
            grad.index_copy_(0, clipped, rows)
            return
    grad.mul_(factor.view(shape))


def _norms(tensors: list[Tensor], rows: int) -> list[Tensor]:
    """Compute unit norms in at least float32.

    The first `rows` tensors give (O,), one norm per row. Each of the others is one unit and gives ().
    """
    if tensors[0].dtype not in (torch.float32, torch.float64):
        tensors = [x.float() for x in tensors]
    norms = [torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim))) for x in tensors[:rows]]
    if rows == len(tensors):
        return norms
    return norms + list(torch._foreach_norm(tensors[rows:]))  # pyright: ignore[reportPrivateImportUsage]: see above


def _flat(norms: list[Tensor], rows: int) -> Tensor:
    return torch.cat(norms[:rows] + ([torch.stack(norms[rows:])] if rows < len(norms) else []))


def _spread(values: list[float], sizes: list[int], like: Tensor) -> float | Tensor:
    """Return one value for all units, or (units,) if the parameters differ."""
    if len(set(values)) == 1:
        return values[0]
    return torch.cat([like.new_full((n,), value) for value, n in zip(values, sizes, strict=True)])


def _at_least(norm: Tensor, floors: list[float], sizes: list[int]) -> Tensor:
    floor = _spread(floors, sizes, norm)
    return torch.maximum(norm, floor) if isinstance(floor, Tensor) else norm.clamp_min(floor)


class AGC:
    """Clip the gradients before every step of an optimizer.

    Example: ``AGC(torch.optim.SGD(param_groups(model, clip=0.01), lr=0.1))``.

    The "clip" of a parameter group is its threshold, and None exempts the group. Its "clip_eps" is the lower bound on
    |W_i|. `param_groups` writes both. The arguments of AGC apply to groups without these keys.

    Gradients must be final when ``step`` is called: all-reduced, accumulated, and unscaled if you use a GradScaler.
    The optimizer's ``state_dict`` keeps the numbers of the groups, but no functions. Functions and keys that a loaded
    state lacks stay unchanged. The ``state_dict`` of AGC is its step count.

    Args:
        optimizer: An optimizer that steps once on dense gradients.
        clip: The threshold of groups without "clip", 0.01 by default. A number, or a function of the step from 0.
        eps: The lower bound on |W_i| of groups without "clip_eps", 1e-3 by default.

    Attributes:
        stats: The AGCStats of the last step.

    Raises:
        WorkbenchError: At construction, if an argument differs from the value of a group, or for LBFGS and SparseAdam.
            In ``step``, for a closure or scaled gradients.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip: Clip | None = None, eps: float | None = None):
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise WorkbenchError(
                f"`optimizer` must be a torch.optim.Optimizer, got {type(optimizer).__name__}. "
                "Wrap the optimizer: AGC(torch.optim.SGD(...))."
            )
        if isinstance(optimizer, torch.optim.LBFGS | torch.optim.SparseAdam):
            raise WorkbenchError(
                f"AGC needs an optimizer that steps once on dense gradients, got {type(optimizer).__name__}. "
                "Use SGD or AdamW."
            )
        _refuse_second_value(optimizer, "clip", "clip", clip)
        _refuse_second_value(optimizer, "eps", "clip_eps", eps)
        clip, eps = 0.01 if clip is None else clip, 1e-3 if eps is None else eps
        if not callable(clip):
            _check_positive("clip", clip)
        _check_positive("eps", eps)
        self.optimizer, self.clip, self.eps = optimizer, clip, eps
        self.steps = 0
        self.stats = AGCStats()
        self._kept: list[dict] = []
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_state_dict_post_hook(_without_functions),
            optimizer.register_load_state_dict_pre_hook(self._keep),
            optimizer.register_load_state_dict_post_hook(self._put_back),
        ]

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if kwargs.get("closure") is not None or any(a is not None for a in args[1:]):
            raise WorkbenchError(
                "AGC clips before `step`, so the gradients of a closure would not be clipped. "
                "Call backward() yourself, then step() without a closure."
            )
        if getattr(optimizer, "grad_scale", None) is not None:
            raise WorkbenchError(
                "AGC needs unscaled gradients, but a GradScaler has scaled them. "
                "Call scaler.unscale_(optimizer) before scaler.step(optimizer)."
            )
        self.stats = _clip(self._parts())
        self.steps += 1

    def _parts(self) -> list[_Clipped]:
        parts = []
        for i, group in enumerate(self.optimizer.param_groups):
            setting: Clip | None = group.get("clip", self.clip)
            if setting is None:
                continue
            clip = setting(self.steps) if callable(setting) else setting
            numbers = [f"group {i}, {j}" for j in range(len(group["params"]))]
            names = group.get("names") or group.get("param_names") or numbers
            eps = group.get("clip_eps", self.eps)
            parts += [_Clipped(p, name, clip, eps) for p, name in zip(group["params"], names, strict=True)]
        return parts

    def _keep(self, optimizer: torch.optim.Optimizer, state: dict) -> None:
        self._kept = [{k: g[k] for k in ("clip", "clip_eps", "names") if k in g} for g in optimizer.param_groups]

    def _put_back(self, optimizer: torch.optim.Optimizer) -> None:
        for group, kept in zip(optimizer.param_groups, self._kept, strict=True):
            for key, value in kept.items():
                group.setdefault(key, value)

    def state_dict(self) -> dict:
        """Return the step count, which schedules of the threshold read."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        """Set the step count from a `state_dict`."""
        self.steps = state["steps"]

    def remove(self) -> None:
        """Stop clipping and restore the optimizer."""
        for hook in self._hooks:
            hook.remove()


def _refuse_second_value(optimizer: torch.optim.Optimizer, argument: str, key: str, value: Clip | None) -> None:
    """Refuse an argument that differs from the value of a group that is not exempt (None)."""
    for i, group in enumerate(optimizer.param_groups):
        group_value = group.get(key)
        if value is None or group_value is None or group_value == value:
            continue
        values = " and ".join(str(getattr(v, "__name__", v)) for v in (value, group_value))
        raise WorkbenchError(
            f"`{argument}` of AGC must equal \"{key}\" of parameter group '{group.get('name', i)}', got {values}. "
            f"Set it in the groups, as param_groups does, and leave `{argument}` out of AGC."
        )


def _without_functions(optimizer: torch.optim.Optimizer, state: dict) -> dict:
    """Drop threshold schedules from a saved state: they are code, and a saved state is data."""
    groups = [{k: v for k, v in g.items() if not (k == "clip" and callable(v))} for g in state["param_groups"]]
    return {**state, "param_groups": groups}


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise WorkbenchError(
            f"`{name}` must be above 0, got {value}. To clip nothing, leave AGC out or exempt the group with clip=None."
        )
