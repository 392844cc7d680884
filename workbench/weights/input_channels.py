"""Another number of input channels for a network with weights, without changing what it computes."""

import copy

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.models.layers import ScaledStdConv2d


def adapt_in_channels(model: nn.Module, in_channels: int) -> None:
    """Gives the first convolution another number of input channels, keeping what it computes, in place.

    With fewer channels C than before, feeding x is feeding the old network x with its channels repeated (channel i of
    the old input is channel i mod C of the new): a gray image acts as it did in three equal channels. With more, the
    further ones start with weight zero. Exact under weight standardisation: the gain takes the change of norm.
    """
    if type(in_channels) is not int or in_channels < 1:
        raise WorkbenchError(f"`in_channels` (={in_channels!r}) must be a whole number, at least 1.")
    several = isinstance(model.stem, nn.ModuleList)
    old = model.stem[0] if several else model.stem
    if in_channels == old.in_channels:
        return
    new = type(old)(in_channels, old.out_channels, old.kernel_size, old.stride, old.groups, old.scale)
    new = new.to(device=old.weight.device, dtype=old.weight.dtype)
    new.bias = copy.deepcopy(old.bias)
    standardized = isinstance(old, ScaledStdConv2d)
    with torch.no_grad():
        before = old.standardized_weight() if standardized else old.weight
        wanted = torch.zeros_like(new.weight)
        for i in range(old.in_channels):
            wanted[:, i % in_channels] += before[:, i]
        if standardized:
            norm, was = _norms(wanted), _norms(old.weight - old.weight.mean((1, 2, 3), keepdim=True)).clamp_min(0.02)
            some = norm > 0  # a filter that was switched off keeps random weights, and gain 0
            new.weight[some] = (wanted * (was / norm.clamp_min(1e-30))[:, None, None, None])[some]
            new.gain.copy_(norm / _norms(new.standardized_weight()))
            new.gain.requires_grad_(old.gain.requires_grad)
        else:
            new.weight.copy_(wanted)
        new.weight.requires_grad_(old.weight.requires_grad)
    if several:
        model.stem[0] = new
    else:
        model.stem = new
    if hasattr(model, "recipe"):
        model.recipe = {**model.recipe, "in_channels": in_channels}


def _norms(weight: Tensor) -> Tensor:
    return weight.flatten(1).norm(dim=1)
