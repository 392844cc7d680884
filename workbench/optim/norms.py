"""Norms of units, without overflow.

Squares in float32 overflow above 1.8e19. Such a norm is computed again in a way that does not overflow. All other norms
are those of torch, bit for bit. A norm is inf or nan only if an element is.
"""

import torch
from torch import Tensor

from workbench.optim.sharded import Units, by_unit, is_one_unit


def unitwise_norm(x: Tensor) -> Tensor:
    """Compute the norm of every unit of `x`, in at least float32. A unit is an index of dimension 0.

    Args:
        x: A tensor of any rank, (O, ...).

    Returns:
        Shape () if `x` is one unit, else (O, 1, ..., 1), which broadcasts against `x`.
    """
    norm = unit_norms(x)
    return norm.squeeze(0) if is_one_unit(x) else norm.view(-1, *[1] * (x.ndim - 1))


def unit_norms(x: Tensor, units: Units = None) -> Tensor:
    """Compute the norm of every unit of `x`, in at least float32.

    Args:
        x: A tensor of any rank.
        units: Its layout, see `workbench.optim.units`. None: units are the indices of dimension 0.

    Returns:
        (units,).
    """
    view, axes = by_unit(x, units)
    (norm,) = norms_of([view], [axes])
    return norm.flatten()


def norms_of(tensors: list[Tensor], axes: list[int]) -> list[Tensor]:
    """Compute the norms of all units of several tensors of one device and precision, in at least float32.

    Args:
        tensors: Those of one unit come last.
        axes: For each tensor, how many leading axes count its units. 0: it is one unit.

    Returns:
        For each tensor its norms, (units,), or () if it is one unit.
    """
    if tensors[0].dtype not in (torch.float32, torch.float64):
        tensors = [x.float() for x in tensors]
    n = sum(count > 0 for count in axes)
    pairs = zip(tensors[:n], axes[:n], strict=True)
    norms = [torch.linalg.vector_norm(x, dim=tuple(range(count, x.ndim))).flatten() for x, count in pairs]
    if n < len(tensors):
        norms += torch._foreach_norm(tensors[n:])  # pyright: ignore[reportPrivateImportUsage]: torch does not export it
    flat = torch.cat([norm.flatten() for norm in norms])
    readable = flat.device.type == "cpu" and not torch.compiler.is_compiling()  # other devices would wait
    if readable and len(flat.isinf().nonzero()) == 0:
        return norms
    safe = torch.cat([_safe_norm(x, count).flatten() for x, count in zip(tensors, axes, strict=True)])
    safe = torch.where(safe.isinf(), safe, safe.clamp_max(torch.finfo(flat.dtype).max)).to(flat.dtype)
    chosen = torch.where(flat.isinf(), safe, flat).split([norm.numel() for norm in norms])
    return [each.view(norm.shape) for each, norm in zip(chosen, norms, strict=True)]


def _safe_norm(x: Tensor, axes: int) -> Tensor:
    """Compute norms of units whose squares overflow. They are inf only if an element is."""
    x = x if axes else x.flatten()
    dims = tuple(range(axes, x.ndim))
    if x.dtype == torch.float32 and x.device.type == "cuda":  # one pass; some other devices have no float64
        return torch.linalg.vector_norm(x, dim=dims, dtype=torch.float64)
    if x.numel() == 0:  # a shard
        return torch.linalg.vector_norm(x, dim=dims)
    largest = torch.linalg.vector_norm(x, torch.inf, dim=dims, keepdim=True)
    share = torch.linalg.vector_norm(x / largest, dim=dims)
    largest = largest.view(share.shape)
    norm = (largest * share).clamp_max(torch.finfo(x.dtype).max)
    return torch.where(largest.isfinite(), norm, largest)
