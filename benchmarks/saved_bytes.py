"""Bytes kept for the backward pass, compared with timm's networks.

The networks compute the same functions. The batch has 4 images of 160 pixels. The bytes are counted: all storages that
a forward pass made and that still exist at its end, without parameters.
"""

import contextlib

import torch
from harness import arguments, counted
from networks import PAIRS, largest_difference, pair
from peer import timm
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workbench.models.recompute import recomputed_activations


class Made(TorchDispatchMode):
    """Record of all storages that operations made, by address.

    Args:
        model: The network, whose parameters and buffers do not count.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        tensors = [*model.parameters(), *model.buffers()]
        self.permanent = {StorageWeakRef(t.untyped_storage()).cdata for t in tensors}
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self.storages[reference.cdata] = reference, storage.nbytes()
        return out

    def alive(self) -> int:
        """Return the bytes of the storages that still exist."""
        entries = (entry for address, entry in self.storages.items() if address not in self.permanent)
        return sum(size for reference, size in entries if not reference.expired())


def saved(model: nn.Module, x: Tensor, scope=contextlib.nullcontext) -> int:
    """Return the bytes that exist after a forward pass.

    Args:
        model: The network.
        x: Images (N, C, H, W).
        scope: Context to run in, made from the model.
    """
    with Made(model) as made, scope(model):
        out = model(x)
    alive = made.alive()
    del out
    return alive


def main() -> None:
    """Run the benchmark."""
    args = arguments(__doc__)
    if timm() is None:
        print("saved_bytes needs timm, which is not installed.")
        return

    def rows():
        targets = {"nf_resnet50": (0.82, None), "nfnet_f0": (0.94, 0.82)}
        for name in PAIRS:
            plain, recomputed = targets[name]
            ours, theirs = pair(name)
            agreement = largest_difference(ours, theirs)
            x = torch.randn(4, 3, 160, 160)
            peer = saved(theirs.float().train(), x)
            yield name, saved(ours.float().train(), x) / peer, plain, agreement
            if recomputed:
                share = saved(ours.float().train(), x, recomputed_activations) / peer
                yield f"{name}, recomputing activations", share, recomputed, agreement

    counted("saved_bytes", "timm", rows(), args)


if __name__ == "__main__":
    main()
