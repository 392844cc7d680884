"""Layers. Evidence: hand arithmetic, the general padding formula, properties of standardised weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.reference import same_pads

from workbench.errors import WorkbenchError
from workbench.models.layers import (
    TRUNCATED_VARIANCE,
    PlainConv2d,
    ScaledStdConv2d,
    SqueezeExcite,
    StochasticDepth,
    same_avg_pool2d,
    same_conv2d,
    same_max_pool2d,
    same_padding,
)


def test_standardisation_by_hand():
    conv = ScaledStdConv2d(2, 1, 1, scale=3.0)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, 5.0]).view(1, 2, 1, 1))
        conv.gain.fill_(0.5)
    # mean 3, biased variance 4, N = 2: (W - 3) / sqrt(8) * 0.5 * 3
    expected = torch.tensor([-2.0, 2.0]) / math.sqrt(8) * 1.5
    torch.testing.assert_close(conv.standardized_weight().flatten(), expected)


def test_every_filter_has_mean_zero_and_norm_one():
    conv = ScaledStdConv2d(12, 8, 3, groups=4).double()
    rows = conv.standardized_weight().flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(8, dtype=torch.float64), atol=1e-15, rtol=0)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(8, dtype=torch.float64))


def test_eps_is_a_floor_of_the_product_not_an_addend():
    conv = ScaledStdConv2d(4, 1, 1).double()
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 4, 1, 1))
    torch.testing.assert_close(
        conv.standardized_weight().abs().flatten(), torch.full((4,), 0.5, dtype=torch.float64), rtol=1e-15, atol=0
    )
    with torch.no_grad():
        conv.weight.mul_(1e-3)  # N var = 4e-6, below 1e-4: the divisor stays 0.01
    torch.testing.assert_close(conv.standardized_weight().abs().flatten(), torch.full((4,), 0.1, dtype=torch.float64))


def test_a_filter_with_one_weight_is_zero():
    conv = ScaledStdConv2d(1, 1, 1)
    torch.testing.assert_close(conv(torch.randn(1, 1, 2, 2)), torch.zeros(1, 1, 2, 2))


def test_scale_is_the_same_as_scaling_the_input_and_leaves_the_bias():
    plain, scaled = ScaledStdConv2d(3, 5, 3), ScaledStdConv2d(3, 5, 3, scale=0.7)
    torch.nn.init.normal_(plain.bias)
    scaled.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(scaled(x), plain(0.7 * x))


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_equals_tensorflows_formula(size, kernel_size, stride):
    assert same_padding(size, kernel_size, stride) == same_pads(size, kernel_size, stride)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 8), (75, 83)])
def test_a_strided_convolution_halves_rounding_up(height, width):
    out = same_conv2d(torch.randn(1, 2, height, width), torch.randn(4, 2, 3, 3), None, 2, 1)
    assert out.shape == (1, 4, math.ceil(height / 2), math.ceil(width / 2))


def test_even_maps_are_padded_after_not_around():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    middle = torch.zeros(1, 1, 3, 3)
    middle[..., 1, 1] = 1  # picks the centre of each window: rows and columns 1 and 3
    torch.testing.assert_close(same_conv2d(x, middle, None, 2, 1).flatten(), torch.tensor([5.0, 7.0, 13.0, 15.0]))


def test_average_pool_divides_by_real_pixels():
    x = torch.tensor([[1.0, 2.0, 10.0]]).view(1, 1, 1, 3)
    torch.testing.assert_close(same_avg_pool2d(x).flatten(), torch.tensor([1.5, 10.0]))


def test_max_pool_pads_with_minus_infinity():
    assert same_max_pool2d(torch.full((1, 1, 4, 4), -5.0)).max() == -5.0


def test_squeeze_excite_gates_by_hand():
    se = SqueezeExcite(2, 0.5)
    with torch.no_grad():
        se.reduce.weight.copy_(torch.tensor([[1.0, -1.0]]))
        se.expand.weight.copy_(torch.tensor([[2.0], [-2.0]]))
    x = torch.stack([torch.full((2, 2), 3.0), torch.full((2, 2), 1.0)])[None]  # pooled (3, 1), hidden relu(2) = 2
    torch.testing.assert_close(se(x).flatten(), torch.sigmoid(torch.tensor([4.0, -4.0])))


def test_stochastic_depth_drops_whole_samples_and_does_not_rescale():
    out = StochasticDepth(0.25)(torch.ones(4000, 1, 2, 2))
    kept = out.flatten(1)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(kept[:, 0], kept[:, 3])
    assert kept[:, 0].mean().item() == pytest.approx(0.75, abs=4 * math.sqrt(0.25 * 0.75 / 4000))


def test_stochastic_depth_is_off_in_evaluation():
    x = torch.randn(3, 2, 2, 2)
    assert StochasticDepth(0.9).eval()(x) is x


def test_truncated_normal_has_the_stated_variance():
    conv = PlainConv2d(256, 512, 3, init_gain=1.0, truncated=True)
    assert conv.weight.var().item() * conv.fan_in == pytest.approx(TRUNCATED_VARIANCE, rel=0.01)
    assert pytest.approx(0.7737, abs=1e-4) == TRUNCATED_VARIANCE


def test_he_initialisation_has_variance_two_over_fan_in():
    assert PlainConv2d(256, 512, 3).weight.var().item() * 256 * 9 == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "name_and_value"),
    [
        ((6, 8, 3, 1, 4), r"`in_channels`.*`groups` \(4\).*6"),
        ((8, 8, 2), "`kernel_size`.*odd.*2"),
        ((8, 8, 3, 3), "`stride`.*1 or 2.*3"),
    ],
)
def test_bad_shapes_are_refused_with_name_and_value(arguments, name_and_value):
    with pytest.raises(WorkbenchError, match=name_and_value):
        ScaledStdConv2d(*arguments)


def test_standardisation_stays_in_float32_under_autocast():
    conv = ScaledStdConv2d(8, 8, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv.standardized_weight().dtype == torch.float32
        assert conv(torch.randn(1, 8, 4, 4)).dtype == torch.bfloat16


def test_a_stride_one_convolution_is_torchs_own():
    x, w = torch.randn(2, 4, 9, 7), torch.randn(6, 4, 5, 5)
    torch.testing.assert_close(same_conv2d(x, w, None, 1, 1), F.conv2d(x, w, padding=2))
