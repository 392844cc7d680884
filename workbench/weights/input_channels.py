"""Changes the number of input channels of a trained network, but not what it computes."""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.models.layers import PlainConv2d, ScaledStdConv2d
from workbench.models.network import Network


def adapt_in_channels(model: Network, in_channels: int) -> None:
    """Change the number of input channels of the first convolution, in place.

    With fewer channels C, feeding x equals feeding the old network x with repeated channels. Channel i of the old input
    is then channel i mod C of x. A gray image acts as it did in three equal channels. With more channels, the weights
    of the new ones start at zero. Both are exact under weight standardisation, because the gain compensates the change
    of norm.

    Args:
        model: A network of this library.
        in_channels: The new number.

    Raises:
        WorkbenchError: If `in_channels` is not a whole number of at least 1.
    """
    if type(in_channels) is not int or in_channels < 1:
        raise WorkbenchError(f"`in_channels` must be a whole number of at least 1, got {in_channels!r}.")
    stem = model.stem
    old = cast(ScaledStdConv2d | PlainConv2d, stem[0] if isinstance(stem, nn.ModuleList) else stem)
    if in_channels == old.in_channels:
        return
    model.image_preprocess = None  # is for images with the old channels
    new = type(old)(in_channels, old.out_channels, old.kernel_size, old.stride, old.groups, old.scale)
    new = new.to(device=old.weight.device, dtype=old.weight.dtype)
    new.register_parameter("bias", copy.deepcopy(old.bias))
    with torch.no_grad():
        before = old.standardized_weight() if isinstance(old, ScaledStdConv2d) else old.weight
        wanted = torch.zeros_like(new.weight)
        for i in range(old.in_channels):
            wanted[:, i % in_channels] += before[:, i]
        if isinstance(old, ScaledStdConv2d) and isinstance(new, ScaledStdConv2d):
            centred = old.weight - old.weight.mean((1, 2, 3), keepdim=True)
            norm, old_norm = _norms(wanted), _norms(centred).clamp_min(0.02)
            live = norm > 0  # a filter that was switched off keeps random weights, and gain 0
            new.weight[live] = (wanted * (old_norm / norm.clamp_min(1e-30))[:, None, None, None])[live]
            new.gain.copy_(norm / _norms(new.standardized_weight()))
            new.gain.requires_grad_(old.gain.requires_grad)
        else:
            new.weight.copy_(wanted)
        new.weight.requires_grad_(old.weight.requires_grad)
    if isinstance(stem, nn.ModuleList):
        stem[0] = new
    else:
        model.stem = new
    if hasattr(model, "recipe"):
        model.recipe = {**model.recipe, "in_channels": in_channels}


def _norms(weight: Tensor) -> Tensor:
    return weight.flatten(1).norm(dim=1)
