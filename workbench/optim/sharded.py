"""The local part of a sharded parameter, and norms of units that are split over processes.

The method is ours: the paper's TPUs held whole parameters. A DTensor sharded over dimension 0 keeps rows together. Rows
are units, so their norms need no communication. A vector is one unit and is split, so its squares are summed over the
mesh.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from workbench.errors import WorkbenchError


class Local(NamedTuple):
    """This process's part of a parameter.

    Attributes:
        weight: The local part of the parameter.
        grad: The local part of its gradient.
        one_unit: Whether the whole parameter is one unit, by its global shape.
        group: The processes that hold parts of one unit. None if each unit is whole in one process.
    """

    weight: Tensor
    grad: Tensor
    one_unit: bool
    group: "dist.ProcessGroup | None" = None


def is_one_unit(p: Tensor) -> bool:
    """Return whether `p` is a scalar or vector after removing its size-1 axes.

    A DTensor counts by its global shape.
    """
    return _is_one_unit(p.shape)


@lru_cache(maxsize=1024)
def _is_one_unit(shape: torch.Size) -> bool:
    return sum(n != 1 for n in shape) <= 1


def local_part(p: Tensor, name: str) -> Local:
    """Return the part in this process, or the parameter itself if it is not sharded.

    Args:
        p: A parameter that has a gradient.
        name: The parameter's name, for error messages.

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
    if not _is_dtensor(grad):
        return Local(p, grad, one_unit)
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
    group = grad.device_mesh.get_group(sharded[0]) if sharded and one_unit else None
    return Local(p.to_local(), grad.to_local(), one_unit, group)


def _is_dtensor(x: Tensor) -> bool:
    return type(x).__name__ == "DTensor"  # by name, to avoid the slow import of torch.distributed.tensor


def sum_over_shards(parts: list[Local], norms: list[list[Tensor]]) -> None:
    """Replace the local norms of split vectors by their global norms.

    This takes one all-reduce for each process group.

    Args:
        parts: The parameters.
        norms: Lists of norms, each with one entry per parameter. The lists are changed in place.
    """
    groups: dict = {}
    for i, part in enumerate(parts):
        if part.group is not None:
            groups.setdefault(part.group, []).append(i)
    for group, members in groups.items():
        squares = torch.stack([each[i].square() for each in norms for i in members])
        dist.all_reduce(squares, group=group)
        for each, chunk in zip(norms, squares.sqrt().split(len(members)), strict=True):
            for i, norm in zip(members, chunk, strict=True):
                each[i] = norm
