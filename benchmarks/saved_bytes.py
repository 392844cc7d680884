"""Bytes kept for backward, counted: NF-ResNet-50 and NFNet-F0 beside timm's, the same function, 4 images of 160 pixels.

Counted once are the storages that autograd saves in one forward pass, parameters left out.
"""

import torch
from harness import arguments, counted
from networks import largest_difference, pair
from peer import timm
from torch import Tensor, nn


def saved(model: nn.Module, x: Tensor) -> int:
    """Bytes of the storages that a forward pass keeps for backward, but for the model's own."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    found = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(x)
    del out
    return sum(storage.nbytes() for storage in found.values())


def main() -> None:
    args = arguments(__doc__)
    if timm() is None:
        print("saved_bytes: timm is not installed, and there is nothing else to compare with")
        return

    def rows():
        for name, target in (("nf_resnet50", 0.82), ("nfnet_f0", 0.94)):
            if args.only in name:
                ours, theirs = pair(name)
                agreement = largest_difference(ours, theirs)
                x = torch.randn(4, 3, 160, 160)
                yield name, saved(ours.float().train(), x) / saved(theirs.float().train(), x), target, agreement

    counted("saved_bytes", "timm", rows(), args)


if __name__ == "__main__":
    main()
