"""Tests of standardised convolutions.

Evidence: the formula in float64, torch's convolution with that weight, outputs of variance 1, and the conversion back
to an ordinary convolution.
"""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from workbench.normfree.standardized_convs import (
    BranchEnd,
    BranchGain,
    Standardized,
    StandardizedCall,
    can_be_standardized,
    standardized,
)

CONVS = {
    "dense": (lambda: nn.Conv2d(8, 12, 3, padding=1), 4),
    "strided": (lambda: nn.Conv2d(8, 12, 5, 2, 1, bias=False), 4),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, groups=4), 4),
    "depthwise": (lambda: nn.Conv2d(8, 16, 3, groups=8), 4),
    "dilated": (lambda: nn.Conv2d(8, 12, 3, dilation=2, padding="same"), 4),
    "circular": (lambda: nn.Conv2d(8, 12, 3, padding=1, padding_mode="circular"), 4),
    "oblong": (lambda: nn.Conv2d(8, 12, (1, 7), padding=(0, 3)), 4),
    "one-dimensional": (lambda: nn.Conv1d(8, 12, 5), 3),
    "three-dimensional": (lambda: nn.Conv3d(8, 12, 3), 5),
}
TRANSPOSED = {
    "2 by 2": lambda: nn.ConvTranspose2d(8, 12, 2, 2),
    "4 by 2": lambda: nn.ConvTranspose2d(8, 12, 4, 2, 1, bias=False),
    "3 by 2": lambda: nn.ConvTranspose2d(8, 12, 3, 2, 1, output_padding=1),
    "grouped": lambda: nn.ConvTranspose2d(8, 12, 4, 2, 1, groups=4),
    "stride 1": lambda: nn.ConvTranspose2d(8, 12, 3),
    "dilated": lambda: nn.ConvTranspose2d(8, 12, 3, 2, 1, dilation=3),
    "one-dimensional": lambda: nn.ConvTranspose1d(8, 12, 4, 2),
    "three-dimensional": lambda: nn.ConvTranspose3d(8, 12, 2, 2),
}


class CustomConv(nn.Conv2d):
    """A convolution with special code, like timm's with TF-SAME padding."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, 2)


def made(conv, gain=None, bias=None, scale=1.7):
    gain = nn.Parameter(torch.ones(conv.out_channels) if gain is None else gain)
    bias = nn.Parameter(torch.zeros(conv.out_channels) if bias is None else bias)
    return standardized(conv, gain, bias, scale, torch.Generator().manual_seed(0))


def formula(weight, gain, scale):
    """Standardise each filter in float64: subtract the mean and divide by the norm."""
    rows = weight.double().flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True) * gain.double()[:, None] * scale
    return rows.view(weight.shape).to(weight.dtype)


@pytest.mark.parametrize("name", CONVS)
def test_a_standardised_convolution_equals_torchs_with_the_standardised_weight(name):
    build, ndim = CONVS[name]
    conv = build()
    x, gain, bias = torch.randn(2, 8, *[11] * (ndim - 2)), torch.rand(conv.out_channels), torch.randn(conv.out_channels)
    reference = copy.deepcopy(conv)
    reference.weight.data = formula(conv.weight.data, gain, 1.7)
    reference.bias = nn.Parameter(bias.clone())
    new = made(conv, gain, bias)
    assert new is conv and isinstance(new, Standardized) and type(reference) in type(new).__mro__
    torch.testing.assert_close(new(x), reference(x), rtol=1e-4, atol=1e-5)
    assert new.weight.flatten(1).norm(dim=1).tolist() == pytest.approx([1.0] * len(new.weight), rel=1e-5)


@pytest.mark.parametrize("mean", [0.0, 3.0])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_every_output_of_a_transposed_convolution_has_mean_0_and_variance_1(name, mean):
    """This holds for any mean of the input and at every position, not only on average over the phases of the stride."""
    conv = made(TRANSPOSED[name](), scale=1.0)
    dims = len(conv.kernel_size)
    out = conv(torch.randn(2000, 8, *[7 if dims < 3 else 4] * dims) + mean)
    inner = out[(..., *[slice(4, -4) if dims < 3 else slice(2, -2)] * dims)]
    if name == "dilated":  # some positions get no taps
        inner = inner[:, :, inner[0, 0].abs().sum(1) > 0][..., inner[0, 0].abs().sum(0) > 0]
    assert inner.mean(0).abs().max() < 0.15
    assert inner.var(0).mean().item() == pytest.approx(1.0, abs=0.02)
    assert inner.var(0).sub(1).abs().max() < 0.25


def test_a_transposed_convolution_equals_torchs_with_the_standardised_weight():
    conv = nn.ConvTranspose2d(8, 12, 3, 2, 1)
    reference, x, bias = copy.deepcopy(conv), torch.randn(2, 8, 5, 5), torch.randn(12)
    new = made(conv, bias=bias)
    reference.weight.data, reference.bias.data = new.standardized_weight().detach(), bias
    for size in (None, [9, 9], [10, 10]):
        torch.testing.assert_close(new(x, output_size=size), reference(x, output_size=size))
    with torch.no_grad():
        parts = [new.standardized_weight()[:, :, a::2, b::2] for a in (0, 1) for b in (0, 1)]
    for part in parts:
        assert part.sum((0, 2, 3)).abs().max() < 1e-5
        assert part.square().sum((0, 2, 3)).tolist() == pytest.approx([1.7**2] * 12, rel=1e-4)


def test_a_convolution_of_another_class_is_called_with_its_weight_standardised():
    conv, x = CustomConv(3, 5, 3, bias=False), torch.randn(2, 3, 8, 8)
    weight = formula(conv.weight.data, torch.ones(5), 1.7)
    new = made(conv)
    assert isinstance(new, StandardizedCall) and new.conv is conv
    torch.testing.assert_close(new(x), F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, None, 2), rtol=1e-4, atol=1e-5)
    new(x).sum().backward()
    assert all(p.grad is not None for p in (new.gain, conv.weight, conv.bias))


@pytest.mark.parametrize("build", [CONVS["grouped"][0], TRANSPOSED["3 by 2"], lambda: CustomConv(8, 12, 3)])
def test_plain_returns_an_ordinary_convolution_and_copies_are_complete(build):
    new, x = made(build(), gain=torch.rand(12), bias=torch.randn(12)).eval(), torch.randn(2, 8, 9, 9)
    before = new(x)
    for other in (copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        assert torch.equal(other(x), before) and other.gain is not new.gain
    plain = new.plain()
    assert not isinstance(plain, Standardized) and not hasattr(plain, "gain")
    torch.testing.assert_close(plain(x), before)


def test_units_of_equal_weights_are_drawn_again_and_the_others_are_kept():
    conv = nn.Conv2d(3, 4, 3)
    conv.weight.data[1] = 0.5
    before = conv.weight.data.clone()
    new = made(conv)
    assert new.weight[1].std() > 0 and new.weight.flatten(1).mean(1).abs().max() < 1e-6
    torch.testing.assert_close(new.standardized_weight()[2], formula(before, torch.ones(4), 1.7)[2])


def test_convolutions_with_one_weight_per_unit_cannot_be_standardised():
    assert not can_be_standardized(nn.Conv2d(8, 8, 1, groups=8))
    assert not can_be_standardized(nn.ConvTranspose2d(8, 8, 2, 2, groups=8))
    assert can_be_standardized(nn.ConvTranspose2d(8, 8, 4, 2, groups=8))


def test_half_precision_stays_half():
    conv = nn.Conv2d(4, 4, 3).to(torch.bfloat16)
    gain = nn.Parameter(torch.ones(4))
    new = standardized(conv, gain, nn.Parameter(torch.zeros(4)), 1.0, torch.Generator())
    assert new(torch.randn(1, 4, 5, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert BranchGain(0.2, 1.0, gain)(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_branch_ends_in_its_gain():
    gain = BranchGain(0.4, 0.5, torch.zeros(1))
    end = BranchEnd(nn.ReLU(), gain)
    assert end(torch.tensor([-1.0, 3.0])).tolist() == pytest.approx([0.0, 0.6])
    assert [name for name, _ in end.named_parameters()] == ["gain.skip_gain"] and gain.skip_gain.shape == (1,)
