"""Dead units: channels that never vary in the inputs of convolutions and matrix products.

The activation of a dead unit gives one value at every sample and position, so it passes on nothing of the input. If
that value comes from a flat part, such as ReLU's zero, the unit gets no gradient. Units are counted in the next layer's
input, so the kind of activation does not matter.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
READ = {aten.convolution.default: 0, aten.addmm.default: 1, aten.mm.default: 0}  # index of the argument with the units
FEWEST = 64  # with fewer values, a channel can be constant by chance


class DeadUnits(TorchDispatchMode):
    """Measure the largest share of dead channels in the input of one product.

    The input of the first product, which is the image itself, does not count, and neither do pooled maps.

    Args:
        samples: Number of samples in a batch. A matrix with at most as many rows is a pooled map.
    """

    def __init__(self, samples: int):
        super().__init__()
        self.samples = samples
        self.share, self.seen_first = 0.0, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in READ:
            if self.seen_first:
                self.share = max(self.share, self._dead(args[READ[func]]))
            self.seen_first = True
        return func(*args, **(kwargs or {}))

    def take(self) -> float:
        """Return the largest share since the last call, from 0 to 1, and start again at 0."""
        share, self.share = self.share, 0.0
        return share

    def _dead(self, x: Tensor) -> float:
        if x.ndim == 2 and x.shape[0] <= self.samples:  # at most one row per sample: pooled
            return 0.0
        if x.numel() // x.shape[1] < FEWEST:
            return 0.0
        over = [d for d in range(x.ndim) if d != 1]
        return (x.amax(over) == x.amin(over)).double().mean().item()
