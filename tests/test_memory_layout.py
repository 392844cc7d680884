"""Tests of the memory layout: the same function in both, and no network that stops running.

Evidence: outputs and gradients in float64, strides of what convolutions see, and networks of users that need
contiguous maps.
"""

import copy

import pytest
import torch
from torch import nn

from workbench.memory_layout import CHANNELS_LAST, CONTIGUOUS, arrange, arrange_if_it_runs, arranged, faster
from workbench.models import create_model

NAMES = ["nf_resnet_tiny", "nfnet_micro", "resnet_tiny", "nf_resnet26_cifar", "nf_regnet_b0", "timm_eca_nfnet_l0"]


def is_last(x):
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


@pytest.mark.parametrize("name", NAMES)
def test_both_layouts_are_one_function(name):
    torch.manual_seed(0)
    one = create_model(name, num_classes=10).double().eval()
    for module in one.modules():
        if hasattr(module, "skip_gain"):
            nn.init.ones_(module.skip_gain)  # from 0, a block would be its shortcut
    two = arrange(copy.deepcopy(one), CHANNELS_LAST)
    x = torch.randn(3, 3, 33, 33, dtype=torch.float64)
    outs = [model(x) for model in (one, two)]
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-9, atol=1e-9)
    for out in outs:
        out.square().sum().backward()
    for (path, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-9, msg=path)


def test_convolutions_see_maps_and_weights_in_the_layout_until_it_is_taken_back():
    model, seen = create_model("nf_resnet_tiny", num_classes=10), []
    conv = model.blocks[0].conv1
    conv.register_forward_hook(lambda conv, args, out: seen.append((args[0], conv.standardized_weight(), out)))
    arrange(arrange(model, CHANNELS_LAST), CHANNELS_LAST)(torch.randn(2, 3, 32, 32))
    arrange(model, CONTIGUOUS)(torch.randn(2, 3, 32, 32))
    assert all(map(is_last, seen[0])) and all(x.is_contiguous() for x in seen[1])
    assert conv.weight.is_contiguous() and not model._forward_pre_hooks


class Mine(nn.Module):
    """A user's network, which makes vectors of maps in a way of its choice."""

    def __init__(self, flat):
        super().__init__()
        self.conv, self.norm, self.head, self.flat = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 36, 10), flat
        self.deep = nn.Conv3d(3, 4, 3)  # its weight has five dimensions

    def forward(self, x):
        return self.head(self.flat(self.norm(self.conv(x))))


@pytest.mark.parametrize(
    ("flat", "layout"),
    [
        (lambda x: x.flatten(1), CHANNELS_LAST),
        (lambda x: x.view(len(x), -1), CONTIGUOUS),
        (lambda x: torch.as_strided(x, (len(x), 144), (144, 1)) if x.is_contiguous() else 1 / 0, CONTIGUOUS),
    ],
    ids=["reshape", "view", "error"],
)
def test_a_network_that_needs_contiguous_maps_keeps_them(flat, layout):
    model = Mine(flat).train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert arrange_if_it_runs(model, CHANNELS_LAST, torch.ones(2, 3, 8, 8)) == layout
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training and model.norm.training and all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 10) and is_last(model.conv.weight) == (layout == CHANNELS_LAST)


def test_without_an_example_nobody_knows():
    model = Mine(lambda x: x.flatten(1))
    assert arrange_if_it_runs(model, CHANNELS_LAST, None) == CONTIGUOUS and model.conv.weight.is_contiguous()


def test_inputs_that_are_no_images_stay_as_they_are():
    tokens = torch.randn(2, 5, 7)
    assert arranged(tokens, CHANNELS_LAST) is tokens
    assert arrange(nn.Linear(7, 2), CHANNELS_LAST)(tokens).shape == (2, 5, 2)


def test_half_precision_on_a_gpu_and_a_cpu_prefer_channels_last():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert faster(cpu) == faster(cpu, half=True) == faster(gpu, half=True) == CHANNELS_LAST
    assert faster(gpu) == faster(torch.device("mps")) == CONTIGUOUS
