"""Dead units: channels that never vary, looked for in what convolutions and matrix products read.

A unit whose activation gives one value at every sample and position passes on nothing of the input and, where that
value comes from a flat piece such as ReLU's zero, gets no gradient. Seen at the reader, whatever the activation was.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
READ = {aten.convolution.default: 0, aten.addmm.default: 1, aten.mm.default: 0}  # which argument holds the units
FEWEST = 64  # values of a channel below which one that happens not to vary proves nothing


class DeadUnits(TorchDispatchMode):
    """While it is entered, the largest share of dead channels in one product's input since `take` was last called.

    What the first product reads, the image itself, is not looked at, nor are maps pooled to a few positions.
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
        """The share from 0 to 1, and starts over."""
        share, self.share = self.share, 0.0
        return share

    def _dead(self, x: Tensor) -> float:
        if x.ndim == 2 and x.shape[0] <= self.samples:  # one row a sample: pooled
            return 0.0
        if x.numel() // x.shape[1] < FEWEST:
            return 0.0
        over = [d for d in range(x.ndim) if d != 1]
        return (x.amax(over) == x.amin(over)).double().mean().item()
