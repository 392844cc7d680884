"""Counts multiply-accumulates of a network in two ways: as it runs, and as the papers count.

The papers' "FLOPs" are multiply-accumulates of convolutions and linear layers at the test size. The authors' counter
divides the size of a map by each stride and keeps the fraction, whereas a forward pass rounds up. The two counts differ
for image sizes that are not a multiple of 32 (NF-RegNet).
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

from torch import Tensor, nn

from workbench.models.network import Network
from workbench.models.nf_regnet import NFRegNet
from workbench.models.nfnet import NFNet


def forward_macs(model: nn.Module, image_size: int) -> int:
    """Count the multiply-accumulates of one forward pass.

    Args:
        model: A network of this library.
        image_size: The image is (1, C, image_size, image_size).
    """
    return int(_count(cast(Network, model), image_size, lambda side, stride: -(-side // stride)))


def published_macs(model: nn.Module, image_size: int) -> float | None:
    """Count the multiply-accumulates as the authors do.

    Args:
        model: A network of this library.
        image_size: The image is (1, C, image_size, image_size).

    Returns:
        The count of an NFNet or NF-RegNet. None for other families, because their published figures differ in kind.
    """
    if not isinstance(model, NFNet | NFRegNet):
        return None
    return _count(model, image_size, lambda side, stride: side / stride)


def _count(model: Network, side: float, strided: Callable[[float, int], float]) -> float:
    """Sum weights times positions over the layers.

    `strided(side, stride)` is the side of the map after a stride.
    """
    total = 0.0
    for conv in cast(Iterable[Any], model.stem if isinstance(model.stem, nn.ModuleList) else [model.stem]):
        side = strided(side, conv.stride)
        total += conv.weight.numel() * side**2
    if getattr(model, "pool", False):
        side = strided(side, 2)
    for block in cast(Iterable[Any], model.blocks):
        total += block.conv0.weight.numel() * side**2
        side = strided(side, block.conv1.stride)
        others = [getattr(block, name, None) for name in ("conv1", "conv1b", "conv2", "conv_shortcut")]
        total += sum(conv.weight.numel() for conv in others if conv is not None) * side**2
        if block.squeeze_excite is not None:
            total += sum(linear.weight.numel() for linear in (block.squeeze_excite.reduce, block.squeeze_excite.expand))
        if getattr(block, "channel_attention", None) is not None:  # a convolution along the channels
            total += block.channel_attention.conv.weight.numel() * block.conv2.out_channels
    final_weight = getattr(getattr(model, "final_conv", None), "weight", None)
    if isinstance(final_weight, Tensor):
        total += final_weight.numel() * side**2
    return total + model.num_features * model.num_classes
