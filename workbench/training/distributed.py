"""One training on several devices, as torchrun starts them.

Every process takes its part of each batch. DistributedDataParallel averages the gradients, so AGC sees the gradient of
the whole batch. Part k of a batch draws the same random values as micro-batch k. So two processes give the same result
as one process with two micro-batches.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workbench import environment
from workbench.errors import WorkbenchError


@dataclass(frozen=True)
class World:
    """The processes of a training, and the place of this process among them.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        local_rank: Number of this process on its machine, from 0.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> "World":
        """Read RANK, WORLD_SIZE and LOCAL_RANK, as torchrun sets them.

        Without them the world has one process.

        Raises:
            WorkbenchError: If one of them is not a whole number, or the rank is not below the size.
        """
        size = environment.whole("WORLD_SIZE", at_least=1) or 1
        rank, local = (environment.whole(name) or 0 for name in ("RANK", "LOCAL_RANK"))
        if max(rank, local) >= size:
            raise WorkbenchError(
                f"RANK (={rank}) and LOCAL_RANK (={local}) must be below WORLD_SIZE (={size}). "
                "Start the processes with torchrun, or unset the variables."
            )
        return cls(rank, size, local)

    @property
    def first(self) -> bool:
        """Whether this process logs and writes."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Return the GPU of this process, or `device` if there is one process or no GPU."""
        if self.size == 1 or device.type != "cuda":
            return device
        return torch.device("cuda", self.local_rank)

    def micro_batch(self, batch_size: int, micro_batch: int | None) -> int | None:
        """Return the largest number of images in a part when the processes share a batch.

        One process with micro-batches of this size draws the same random values.
        """
        share = -(-batch_size // self.size)
        return micro_batch if self.size == 1 else min(micro_batch or share, share)

    def part(self, index: Tensor) -> Tensor:
        """Return the part of a batch's indices for this process."""
        return index.tensor_split(self.size)[self.rank]

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Return the model with averaged gradients, or the model itself for one process."""
        return model if self.size == 1 else nn.parallel.DistributedDataParallel(model)

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over the processes."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def agree(self, value):
        """Return the first process's value in all processes."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


@contextlib.contextmanager
def joined(world: World) -> Iterator[None]:
    """Connect the processes within this context. It does nothing for one, or if connected."""
    if world.size == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
        dist.barrier()  # a process that ends early would cut off the last message of another
    finally:
        dist.destroy_process_group()


def unsynchronised(net: nn.Module, when: bool):
    """Return a context in which backward does not average gradients, if `when` is True."""
    return net.no_sync() if when and isinstance(net, nn.parallel.DistributedDataParallel) else contextlib.nullcontext()
