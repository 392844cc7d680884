"""Adaptive gradient clipping: a unit's gradient norm is at most `clip` times its weights'.

Source: NFNet paper, section 3 (equation 4), and the authors' code. For every unit i of a parameter W with gradient G:

    G_i <- clip * max(|W_i|, eps) / |G_i| * G_i    if    |G_i| > clip * max(|W_i|, eps)

A unit is one index of dimension 0: a row of a Linear, an Embedding or a fused qkv, or a filter of a Conv1d to Conv3d.
`param_groups` marks the layers whose outputs are on dimension 1, such as ConvTranspose2d, see `workbench.optim.units`.
A parameter that is a scalar or a vector after removing its size-1 axes is one unit, as in the authors' code. Examples
are a bias, a gain and a skip gain.

A unit whose gradient is not finite becomes nan as a whole, as in the authors' code, so that it cannot pass unseen.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.optim.norms import norms_of
from workbench.optim.scope import refuse_open
from workbench.optim.sharded import (
    Local,
    Units,
    local_part,
    refuse_flattened,
    sum_over_shards,
    total_over_shards,
)
from workbench.optim.telemetry import AGCStats

LARGE = 2**16  # elements of a gradient, above which the CPU rewrites only the clipped rows


class Clipped(NamedTuple):
    """A parameter, its name, its clipping rule, and the layout of its units."""

    p: Tensor
    name: str
    clip: float
    eps: float
    units: Units = None


class _Measured(NamedTuple):
    """Parameters of one device and precision, those of one unit last, and the norms (units,) of all their units."""

    parts: list[Clipped]
    locals_: list[Local]
    sizes: list[int]  # number of units of each parameter
    g_norm: Tensor
    w_norm: Tensor
    max_norm: Tensor


def clip_grad_agc_(
    params: Tensor | Iterable[Tensor] | Iterable[dict[str, Any]],
    clip: float = 0.01,
    eps: float = 1e-3,
    error_if_nonfinite: bool = False,
) -> AGCStats:
    """Clip gradients in place, unit by unit.

    With ``params=param_groups(model)`` it does what `AGC` does before a step. A list of parameters is clipped as it is,
    with the classifier, and every unit is an index of dimension 0.

    Args:
        params: The groups of `param_groups`, or parameters of any rank, or DTensors as `fully_shard` makes them. Those
            without a gradient are skipped, and so are groups whose "clip" is None.
        clip: The paper's lambda, for parameters and for groups without "clip".
        eps: Lower bound on |W_i|, so that zero-initialised units can move. For groups without "clip_eps".
        error_if_nonfinite: Whether to raise an error, and clip nothing, if the norm of a unit's gradient is not finite.
            Otherwise all gradients of that unit become nan.

    Returns:
        The norms of this call.

    Raises:
        WorkbenchError: If `clip` or `eps` is not positive or a function, a gradient is sparse or complex, a DTensor is
            placed in another way, the parameters are those of FullyShardedDataParallel, or `error_if_nonfinite` is set
            and a gradient is not finite.
    """
    members: list = [params] if isinstance(params, Tensor) else list(params)
    parts: list[Clipped] = []
    for i, member in enumerate(members):
        if isinstance(member, Tensor):
            parts.append(Clipped(member, str(i), clip, eps))
        elif isinstance(member, dict) and "params" in member:
            parts += _parts_of(member, i, clip, eps)
        else:
            raise WorkbenchError(
                f"`params` must hold parameters or the groups of param_groups, got {type(member).__name__}. "
                "Use param_groups(model)."
            )
    return clip_parts(parts, error_if_nonfinite)


def _parts_of(group: dict[str, Any], index: int, clip: float, eps: float) -> list[Clipped]:
    """Return the parameters of a group with its clipping rule."""
    threshold = group.get("clip", clip)
    if threshold is None:
        return []
    if callable(threshold):
        raise WorkbenchError(
            f"The \"clip\" of parameter group '{group.get('name', index)}' must be a number, got a function. "
            "Use AGC(optimizer), which counts the steps."
        )
    params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    names = group.get("names") or [f"group {index}, {j}" for j in range(len(params))]
    rule = threshold, group.get("clip_eps", eps), group.get("units")
    return [Clipped(p, name, *rule) for p, name in zip(params, names, strict=True)]


@torch.no_grad()
def clip_parts(parts: list[Clipped], error_if_nonfinite: bool = False) -> AGCStats:
    """Apply the rule in few operations over all parameters of one device and precision.

    Args:
        parts: The parameters with their thresholds.
        error_if_nonfinite: Refuse gradients that are not finite, before any is scaled.

    Returns:
        What was measured and clipped.

    Raises:
        WorkbenchError: For a threshold or eps that is not positive, a parameter without values, or a gradient that is
            not finite.
    """
    for clip, eps in {(part.clip, part.eps) for part in parts}:
        check_positive("clip", clip)
        check_positive("eps", eps)
    refuse_open([part.p for part in parts], "AGC cannot clip")
    refuse_flattened([part.p for part in parts], "AGC cannot clip")
    kinds: dict[tuple, list[tuple[Clipped, Local]]] = {}
    seen = set()  # a shared parameter is clipped once
    for part in parts:
        if part.p.grad is None or id(part.p) in seen or part.p.numel() == 0:
            continue
        seen.add(id(part.p))
        local = local_part(part.p, part.name, part.units)
        kinds.setdefault((local.weight.device, local.weight.dtype, local.grad.dtype), []).append((part, local))
    measured = [_measured(members) for members in kinds.values()]
    stats = AGCStats(order=[part.name for part in parts])
    for m in measured:
        stats.add([part.name for part in m.parts], m.sizes, m.g_norm, m.w_norm, m.max_norm)
    if error_if_nonfinite:
        _refuse_nonfinite(stats, measured)
    for m in measured:
        _scale(m)
    return stats


def _measured(members: list[tuple[Clipped, Local]]) -> _Measured:
    members = sorted(members, key=lambda member: member[1].axes == 0)  # matrices first, then parameters of one unit
    parts, locals_ = [part for part, _ in members], [local for _, local in members]
    axes = [local.axes for local in locals_]
    g_norms, w_norms = norms_of([x.grad for x in locals_], axes), norms_of([x.weight for x in locals_], axes)
    sum_over_shards(locals_, [g_norms, w_norms])
    sizes, many = [norm.numel() for norm in g_norms], sum(n > 0 for n in axes)
    g_norm, w_norm = _flat(g_norms, many), _flat(w_norms, many)
    w_norm = _at_least(w_norm, [part.eps for part in parts], sizes)
    max_norm = w_norm * _spread([part.clip for part in parts], sizes, w_norm)
    return _Measured(parts, locals_, sizes, g_norm, w_norm, max_norm)


def _scale(m: _Measured) -> None:
    """Scale the units above their limit. Those whose norm is not finite become nan."""
    factor = torch.where(m.g_norm <= m.max_norm, 1.0, m.max_norm / m.g_norm.clamp_min(1e-6))
    factor = torch.where(m.g_norm.isfinite(), factor, torch.nan)
    many = sum(local.axes > 0 for local in m.locals_)
    grads, units = [local.grad for local in m.locals_], sum(m.sizes[:many])
    for local, f in zip(m.locals_[:many], factor[:units].split(m.sizes[:many]), strict=True):
        _scale_units(local.grad, f, local.axes)
    whole, factors = grads[many:], factor[units:].unbind()
    if whole and whole[0].dtype == factor.dtype:
        torch._foreach_mul_(whole, factors)  # pyright: ignore[reportPrivateImportUsage]: torch does not export it
    else:  # half precision: a factor of the gradient's precision would round twice
        for grad, f in zip(whole, factors, strict=True):
            grad.mul_(f)


def _scale_units(grad: Tensor, factor: Tensor, axes: int) -> None:
    """Multiply grad, whose first axes count the units, by factor (units,) in place."""
    shape = (*grad.shape[:axes], *[1] * (grad.ndim - axes))
    if axes == 1 and grad.numel() > LARGE and grad.device.type == "cpu" and not torch.compiler.is_compiling():
        (clipped,) = (factor != 1).nonzero(as_tuple=True)
        if 2 * len(clipped) < len(factor):
            rows = grad.index_select(0, clipped).mul_(factor[clipped].view(-1, *shape[1:]))
            grad.index_copy_(0, clipped, rows)
            return
    grad.mul_(factor.view(shape))


def _refuse_nonfinite(stats: AGCStats, measured: list[_Measured]) -> None:
    """Refuse norms that are not finite in any process, before anything is scaled."""
    count = sum((~m.g_norm.isfinite()).sum() for m in measured)
    if not isinstance(count, Tensor) or not total_over_shards(count, [x for m in measured for x in m.locals_]):
        return
    bad = [f"{name} ({n} units)" for name, n in stats.not_finite().items()]
    names = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
    raise WorkbenchError(
        f"Gradients must be finite, got nan or inf in {names or 'another process'}. Skip this step, lower the learning "
        "rate, or set error_if_nonfinite=False."
    )


def _flat(norms: list[Tensor], many: int) -> Tensor:
    return torch.cat(norms[:many] + ([torch.stack(norms[many:])] if many < len(norms) else []))


def _spread(values: list[float], sizes: list[int], like: Tensor) -> float | Tensor:
    """Return one value for all units, or (units,) if the parameters differ."""
    if len(set(values)) == 1:
        return values[0]
    return torch.cat([like.new_full((n,), value) for value, n in zip(values, sizes, strict=True)])


def _at_least(norm: Tensor, floors: list[float], sizes: list[int]) -> Tensor:
    floor = _spread(floors, sizes, norm)
    return torch.maximum(norm, floor) if isinstance(floor, Tensor) else norm.clamp_min(floor)


def check_positive(name: str, value: float) -> None:
    """Check a threshold or eps.

    Raises:
        WorkbenchError: If it is not above 0.
    """
    if not value > 0:
        raise WorkbenchError(
            f"`{name}` must be above 0, got {value}. To clip nothing, leave AGC out or exempt the group with clip=None."
        )
