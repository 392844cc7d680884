"""One training on several devices: what torchrun says of the processes, and the little that they agree on.

Every process takes its part of each batch; gradients are averaged by DistributedDataParallel, so AGC sees the joined
batch's. Part k of a batch draws what micro-batch k would: two processes give what one gives with two micro-batches.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workbench.errors import WorkbenchError


@dataclass(frozen=True)
class World:
    """This process among `size`; `local_rank` counts on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> "World":
        """As torchrun sets RANK, WORLD_SIZE and LOCAL_RANK; a world of one where it did not."""
        try:
            size = int(os.environ.get("WORLD_SIZE", "1"))
            rank, local = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
        except ValueError as error:
            raise WorkbenchError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers ({error}).") from error
        return cls(rank, size, local)

    @property
    def first(self) -> bool:
        """Whether this process is the one that logs and writes."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """The GPU of this process, where there are several processes and GPUs."""
        if self.size == 1 or device.type != "cuda":
            return device
        return torch.device("cuda", self.local_rank)

    def micro_batch(self, batch_size: int, micro_batch: int | None) -> int | None:
        """The most images of a part when the processes share a batch; one process with parts of that size draws what
        they draw."""
        share = -(-batch_size // self.size)
        return micro_batch if self.size == 1 else min(micro_batch or share, share)

    def part(self, index: Tensor) -> Tensor:
        """This process's part of a batch's indices."""
        return index.tensor_split(self.size)[self.rank]

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over the processes; itself in a world of one."""
        return model if self.size == 1 else nn.parallel.DistributedDataParallel(model)

    def total(self, value: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def agree(self, value):
        """What the first process says, in all of them."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


@contextlib.contextmanager
def joined(world: World) -> Iterator[None]:
    """Joins the processes, where there are several and they are not joined yet."""
    if world.size == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
        dist.barrier()  # who leaves first would cut off another's last message
    finally:
        dist.destroy_process_group()


def unsynchronised(net: nn.Module, when: bool):
    """Within it, backward leaves gradients as they are in this process."""
    return net.no_sync() if when and isinstance(net, nn.parallel.DistributedDataParallel) else contextlib.nullcontext()
