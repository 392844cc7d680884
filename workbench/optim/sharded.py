"""The local part of a sharded parameter, and norms of units that are split over processes.

The method is ours: the paper's TPUs held whole parameters. A DTensor sharded over dimension 0 keeps rows together. Rows
are units, so their norms need no communication. A vector is one unit and is split, so its squares are summed over the
mesh. So are those of units along dimension 1.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from workbench.errors import WorkbenchError

Units = int | None  # None: indices of dimension 0; g above 0: indices of dimension 1, in g groups of dimension 0
WHOLE = 0  # the parameter is one unit


class Local(NamedTuple):
    """This process's part of a parameter.

    Attributes:
        weight: The local part of the parameter, with the units first.
        grad: The local part of its gradient, with the units first. It is a view.
        axes: How many leading axes count the units. 0: the parameter is one unit, by its global shape.
        mesh: The processes that hold other parts of the parameter. None if this one holds all.
        split: Whether `mesh` holds parts of the same units.
    """

    weight: Tensor
    grad: Tensor
    axes: int
    mesh: "dist.ProcessGroup | None" = None
    split: bool = False


def by_unit(x: Tensor, units: Units, one_unit: bool | None = None) -> tuple[Tensor, int]:
    """Return a view of `x` with the units first, and the number of axes that count them (0 for one unit).

    Args:
        x: A tensor.
        units: Its layout.
        one_unit: Whether it is a scalar or vector. None: by its shape.
    """
    if units == WHOLE or (is_one_unit(x) if one_unit is None else one_unit):
        return x, 0
    if units is None:
        return x, 1
    if units == 1:
        return x.transpose(0, 1), 1
    return x.unflatten(0, (units, -1)).transpose(1, 2), 2


def is_one_unit(p: Tensor) -> bool:
    """Return whether `p` is a scalar or vector after removing its size-1 axes.

    A DTensor counts by its global shape.
    """
    return _is_one_unit(p.shape)


@lru_cache(maxsize=1024)
def _is_one_unit(shape: torch.Size) -> bool:
    return sum(n != 1 for n in shape) <= 1


def refuse_flattened(params: Iterable[Tensor], what: str) -> None:
    """Refuse the parameters of FullyShardedDataParallel, which are cut across units.

    Args:
        params: The parameters to use.
        what: What would go wrong, such as "AGC cannot clip".

    Raises:
        WorkbenchError: If torch has marked one of them as flattened.
    """
    if any(getattr(p, "_fsdp_flattened", False) for p in params):
        raise WorkbenchError(
            f"{what} the flattened parameters of FullyShardedDataParallel, which hide their units. Use "
            "torch.distributed.fsdp.fully_shard instead."
        )


def local_part(p: Tensor, name: str, units: Units = None) -> Local:
    """Return the part in this process, or the parameter itself if it is not sharded.

    Args:
        p: A parameter that has a gradient.
        name: The parameter's name, for error messages.
        units: The parameter's layout.

    Raises:
        WorkbenchError: If AGC has no rule for the gradient: it is sparse, complex, or placed in another way.
    """
    grad, one_unit = p.grad, is_one_unit(p)
    assert grad is not None
    if grad.layout != torch.strided:
        raise WorkbenchError(
            f"AGC needs dense gradients, but the gradient of {name} is sparse. Build the Embedding with sparse=False."
        )
    if grad.is_complex():
        raise WorkbenchError(
            f"AGC needs real gradients, but the gradient of {name} is {grad.dtype}. "
            "View the parameter as real with torch.view_as_real."
        )
    if not is_dtensor(grad):
        weight, axes = by_unit(p, units, one_unit)
        return Local(weight, by_unit(grad, units, one_unit)[0], axes)
    from torch.distributed.tensor import DTensor, Replicate, Shard

    assert isinstance(grad, DTensor) and isinstance(p, DTensor)
    placements = grad.placements
    sharded = [i for i, placement in enumerate(placements) if type(placement) is Shard and placement.dim == 0]
    known = len(sharded) <= 1 and all(i in sharded or isinstance(q, Replicate) for i, q in enumerate(placements))
    if not known or p.placements != placements:
        raise WorkbenchError(
            "AGC needs gradients that are replicated, or sharded over dimension 0 as fully_shard does it, but the "
            f"gradient of {name} is {', '.join(map(repr, placements))}. Redistribute it, or exempt the parameter with "
            "clip=None."
        )
    mesh = grad.device_mesh.get_group(sharded[0]) if sharded else None
    if mesh is not None and units is not None and units > 1 and not one_unit:
        raise WorkbenchError(
            f"AGC cannot clip {name}, whose {units} groups of channels are cut by the shards. Exempt it with "
            "clip=None, or leave its layer out of fully_shard."
        )
    weight, axes = by_unit(p.to_local(), units, one_unit)
    split = mesh is not None and (axes == 0 or units is not None)
    return Local(weight, by_unit(grad.to_local(), units, one_unit)[0], axes, mesh, split)


def is_dtensor(x: Tensor) -> bool:
    """Return whether `x` is a DTensor, as `fully_shard` makes them."""
    return type(x).__name__ == "DTensor"  # by name, to avoid the slow import of torch.distributed.tensor


def sum_over_shards(parts: list[Local], norms: list[list[Tensor]]) -> None:
    """Replace the local norms of split units by their global norms.

    This takes one all-reduce for each process group, in float64, because squares of float32 may overflow.

    Args:
        parts: The parameters.
        norms: Lists of norms, each with one entry per parameter. The lists are changed in place.
    """
    groups: dict = {}
    for i, part in enumerate(parts):
        if part.split:
            groups.setdefault(part.mesh, []).append(i)
    for group, members in groups.items():
        places = [(each, i) for each in norms for i in members]
        squares = torch.cat([each[i].double().square().flatten() for each, i in places])
        dist.all_reduce(squares, group=group)
        sums = squares.sqrt().split([each[i].numel() for each, i in places])
        for (each, i), norm in zip(places, sums, strict=True):
            top = torch.finfo(each[i].dtype).max
            each[i] = torch.where(norm.isfinite(), norm.clamp_max(top), norm).to(each[i].dtype).view(each[i].shape)


def total_over_shards(count: Tensor, parts: Iterable[Local]) -> Tensor:
    """Sum a count over all processes that hold shards of these parameters."""
    for mesh in {part.mesh for part in parts if part.mesh is not None}:
        dist.all_reduce(count, group=mesh)
    return count
