"""Multiply-accumulates of a network, counted twice: as it runs, and as the papers count.

The papers' "FLOPs" are multiply-accumulates of convolutions and linear layers at the test size. The authors' counter
divides the map by each stride exactly, fractions kept; a forward pass rounds up. The two part where a size is not a
multiple of 32 (NF-RegNet).
"""

from collections.abc import Callable

from torch import nn

from workbench.models.nf_regnet import NFRegNet
from workbench.models.nfnet import NFNet


def forward_macs(model: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of one forward pass of one image (C, image_size, image_size) through a network of ours."""
    return int(_count(model, image_size, lambda side, stride: -(-side // stride)))


def published_macs(model: nn.Module, image_size: int) -> float | None:
    """As the authors count NFNets and NF-RegNets; None for other families, whose published figures differ in kind."""
    if not isinstance(model, NFNet | NFRegNet):
        return None
    return _count(model, image_size, lambda side, stride: side / stride)


def _count(model: nn.Module, side: float, strided: Callable[[float, int], float]) -> float:
    """The sum over layers of weights times positions; `strided` gives the side of the map behind a stride."""
    total = 0.0
    for conv in model.stem if isinstance(model.stem, nn.ModuleList) else [model.stem]:
        side = strided(side, conv.stride)
        total += conv.weight.numel() * side**2
    if getattr(model, "pool", False):
        side = strided(side, 2)
    for block in model.blocks:
        total += block.conv0.weight.numel() * side**2
        side = strided(side, block.conv1.stride)
        behind = [getattr(block, name, None) for name in ("conv1", "conv1b", "conv2", "conv_shortcut")]
        total += sum(conv.weight.numel() for conv in behind if conv is not None) * side**2
        if block.squeeze_excite is not None:
            total += sum(linear.weight.numel() for linear in (block.squeeze_excite.reduce, block.squeeze_excite.expand))
        if getattr(block, "channel_attention", None) is not None:  # a convolution along the channels
            total += block.channel_attention.conv.weight.numel() * block.conv2.out_channels
    if isinstance(getattr(model, "final_conv", None), nn.Module) and hasattr(model.final_conv, "weight"):
        total += model.final_conv.weight.numel() * side**2
    return total + model.num_features * model.num_classes
