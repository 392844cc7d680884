"""Forward and backward on bfloat16 copies of the parameters, as the authors train; autocast keeps more in float32."""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm


class Bfloat16Copies(nn.Module):
    """Runs `model` on bfloat16 copies of its parameters and of the images; gradients come to the float32 parameters.

    Weight standardisation then is in bfloat16, too. BatchNorm's parameters and statistics stay float32.
    Source: the authors' training code.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.kept = {id(p) for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters()}

    def forward(self, x: Tensor) -> Tensor:
        copies = {name: p if id(p) in self.kept else p.to(torch.bfloat16) for name, p in self.model.named_parameters()}
        return functional_call(self.model, copies, x.to(torch.bfloat16))
