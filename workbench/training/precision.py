"""Forward and backward on bfloat16 copies of the parameters, as the authors train.

Autocast keeps more operations in float32.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm


class Bfloat16Copies(nn.Module):
    """A network that runs on bfloat16 copies of its parameters and of the images.

    Gradients reach the float32 parameters. Weight standardisation also runs in bfloat16. Parameters and statistics of
    BatchNorm stay in float32. Source: the authors' training code.

    Args:
        model: The network, with float32 parameters.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.kept = {id(p) for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters()}

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes) in bfloat16."""
        copies = {name: p if id(p) in self.kept else p.to(torch.bfloat16) for name, p in self.model.named_parameters()}
        return functional_call(self.model, copies, x.to(torch.bfloat16))
