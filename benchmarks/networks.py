"""Pairs of networks, ours and timm's, with the same weights and the same function."""

import torch
import torch.nn.functional as F
from peer import exact_nfnet, timm
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from workbench.models import create_model
from workbench.weights.strict import load_strictly
from workbench.weights.timm_layout import from_timm

PAIRS = {"nf_resnet50": ("timm_nf_resnet50", "nf_resnet50"), "nfnet_f0": ("nfnet_f0", "dm_nfnet_f0")}
ROUNDING = 1e-9  # in float64


def pair(name: str, **args) -> tuple[nn.Module, nn.Module]:
    """Make a pair of networks in float64 with the same weights, without dropout.

    Gains and biases get random values, because their starting values are special.

    Args:
        name: Key of `PAIRS`.
        **args: More arguments of our network.

    Returns:
        Our network and timm's.
    """
    ours, theirs = PAIRS[name]
    torch.manual_seed(0)
    peer = timm().create_model(theirs).double()
    with torch.no_grad():
        for parameter, p in peer.named_parameters():
            if parameter.endswith(("gain", "bias", "skipinit_gain")):
                p.add_(0.3 * torch.randn_like(p))
    if theirs.startswith("dm_"):
        exact_nfnet(peer)
    model = create_model(ours, **{"stochastic_depth": 0.0, "dropout": 0.0} | args).double()
    load_strictly(model, from_timm(peer.state_dict()))
    return model, peer


@torch.no_grad()
def largest_difference(ours: nn.Module, theirs: nn.Module) -> float:
    """Return the relative difference of the logits, in float64 and evaluation mode."""
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    a, b = ours.eval()(x), theirs.eval()(x)
    return ((a - b).norm() / b.norm()).item()


@torch.no_grad()
def flops(model: nn.Module, x: torch.Tensor) -> float:
    """Count the floating-point operations of a forward pass with torch's counter."""
    with FlopCounterMode(display=False) as counter:
        model(x)
    return float(counter.get_total_flops())


def largest_gradient_difference(ours: nn.Module, theirs: nn.Module) -> float:
    """Return the largest relative difference of a gradient, in float64 and training mode."""
    x, y = torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.tensor([3, 14])
    for model in (ours.train(), theirs.train()):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
    gradients = from_timm({name: p.grad for name, p in theirs.named_parameters()})
    gaps = [(p.grad - gradients[name]).norm() / gradients[name].norm() for name, p in ours.named_parameters()]
    for model in (ours, theirs):
        model.zero_grad(set_to_none=True)
    return max(gaps).item()
