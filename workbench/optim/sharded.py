"""What of a sharded parameter lies in this process, and whether its units are whole here.

Source: our own; the paper's TPUs held whole parameters. A DTensor sharded over dimension 0 keeps rows together, and
rows are units, so their norms need no communication. A vector is one unit and is split: its squares are summed over the
mesh.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from workbench.errors import WorkbenchError


class Local(NamedTuple):
    """This process's part of a parameter and its gradient; `one_unit` by the global shape; `group` sums its squares."""

    weight: Tensor
    grad: Tensor
    one_unit: bool
    group: "dist.ProcessGroup | None" = None


def is_one_unit(p: Tensor) -> bool:
    """Whether `p` is a scalar or vector after removing its size-1 axes, by its global shape where it is sharded."""
    return _is_one_unit(p.shape)


@lru_cache(maxsize=1024)
def _is_one_unit(shape: torch.Size) -> bool:
    return sum(n != 1 for n in shape) <= 1


def local_part(p: Tensor, name: str) -> Local:
    """The part in this process; the parameter itself where it is not sharded.

    Raises: WorkbenchError for gradients that AGC has no rule for, naming the parameter and the cure.
    """
    grad, one_unit = p.grad, is_one_unit(p)
    if grad.layout != torch.strided:
        raise WorkbenchError(
            f"AGC needs dense gradients, but that of {name} is sparse: build the Embedding with sparse=False."
        )
    if grad.is_complex():
        raise WorkbenchError(
            f"AGC needs real gradients, but that of {name} is {grad.dtype}: "
            "view the parameter as real with torch.view_as_real."
        )
    if not _is_dtensor(grad):
        return Local(p, grad, one_unit)
    from torch.distributed.tensor import Replicate, Shard

    placements = grad.placements
    sharded = [i for i, placement in enumerate(placements) if type(placement) is Shard and placement.dim == 0]
    known = len(sharded) <= 1 and all(i in sharded or isinstance(q, Replicate) for i, q in enumerate(placements))
    if not known or p.placements != placements:
        raise WorkbenchError(
            f"AGC knows gradients that are replicated, or sharded over dimension 0 as fully_shard does it, but that of "
            f"{name} is {', '.join(map(repr, placements))}: redistribute it, or exempt the parameter with clip=None."
        )
    group = grad.device_mesh.get_group(sharded[0]) if sharded and one_unit else None
    return Local(p.to_local(), grad.to_local(), one_unit, group)


def _is_dtensor(x: Tensor) -> bool:
    return type(x).__name__ == "DTensor"  # without importing torch.distributed.tensor for everybody


def sum_over_shards(parts: list[Local], norms: list[list[Tensor]]) -> None:
    """Completes, in place in the lists, the norms of split vectors: one all-reduce for each process group."""
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
