"""Multiply-accumulates of a network, counted twice: as it runs, and as the papers count.

The papers' "FLOPs" are multiply-accumulates of convolutions and linear layers at the test size. The authors' counter
divides the map by each stride exactly, fractions kept; a forward pass rounds up. The two part where a size is not a
multiple of 32 (NF-RegNet).
"""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from workbench.models.nf_regnet import NFRegNet
from workbench.models.nfnet import NFNet


def forward_macs(model: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of one forward pass of one image (C, image_size, image_size); works on the meta device."""
    weight = next(p for p in model.parameters() if p.ndim == 4)  # the first convolution's
    image = torch.zeros(1, weight.shape[1], image_size, image_size, device=weight.device, dtype=weight.dtype)
    training = model.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    model.train(training)
    return counter.get_total_flops() // 2


def published_macs(model: nn.Module, image_size: int) -> float | None:
    """As the authors count NFNets and NF-RegNets; None for other families, whose published figures differ in kind."""
    if not isinstance(model, NFNet | NFRegNet):
        return None
    total, pixels = 0.0, float(image_size) ** 2
    for conv in model.stem if isinstance(model.stem, nn.ModuleList) else [model.stem]:
        pixels /= conv.stride**2
        total += conv.weight.numel() * pixels
    for block in model.blocks:
        total += block.conv0.weight.numel() * pixels
        pixels /= block.stride**2
        behind = [block.conv1, getattr(block, "conv1b", None), block.conv2, getattr(block, "conv_shortcut", None)]
        total += sum(conv.weight.numel() for conv in behind if conv is not None) * pixels
        if block.squeeze_excite is not None:
            total += sum(p.numel() for p in block.squeeze_excite.parameters() if p.ndim == 2)
    return total + model.final_conv.weight.numel() * pixels + model.num_features * model.num_classes
