"""The theory. Evidence: the paper's algebra in closed form, and measurement within its sampling error."""

import math

import pytest
import torch

from workbench.models import create_model
from workbench.models.layers import PlainConv2d, ScaledStdConv2d
from workbench.probes import expected_signal, signal_propagation
from workbench.probes.theory import Activated, Trunk, activate, conv, max_pool


def test_relu_moments_in_closed_form():
    a = activate(torch.relu, Trunk(0.0, 0.0, 1.0))
    assert a.A == pytest.approx(1 / math.sqrt(2 * math.pi), rel=1e-5)
    assert a.C == pytest.approx((1 - 1 / math.pi) / 2, rel=1e-5)


def test_relu_with_spread_channel_means_is_the_arc_cosine_kernel():
    M, V = 0.6, 0.4
    rho = M / (M + V)
    kernel = (math.sqrt(1 - rho**2) + rho * (math.pi - math.acos(rho))) / (2 * math.pi) * (M + V)
    a = activate(torch.relu, Trunk(0.0, M, V))
    assert a.B == pytest.approx(kernel, rel=1e-3)
    assert a.B + a.C == pytest.approx((M + V) / 2, rel=1e-3)


def test_scaled_standardisation_gives_mean_zero_and_variance_one():
    # gamma of the exact table for relu: sqrt(2 / (1 - 1 / pi))
    layer = ScaledStdConv2d(64, 64, 1, scale=math.sqrt(2 / (1 - 1 / math.pi)))
    out = conv(layer, activate(torch.relu, Trunk(0.0, 0.0, 1.0)))
    assert (out.m, out.M) == (0.0, pytest.approx(0.0, abs=1e-9))
    assert out.V == pytest.approx(1.0, rel=1e-5)


def test_he_convolution_keeps_the_second_moment_and_lets_the_mean_in():
    out = conv(PlainConv2d(64, 64, 1), activate(torch.relu, Trunk(0.0, 0.0, 1.0)))
    assert out.M == pytest.approx(1 / math.pi, rel=1e-4)
    assert out.V == pytest.approx(1 - 1 / math.pi, rel=1e-4)


def test_largest_of_nine_normals():
    pooled = max_pool(Trunk(0.0, 0.0, 1.0))
    assert (pooled.m, pooled.V) == (
        pytest.approx(1.48501, abs=1e-4),
        pytest.approx(0.35735, abs=1e-4),
    )  # tables of order statistics


def test_the_paper_staircase_after_each_transition():
    table = expected_signal(create_model("nf_resnet26_cifar", 10, skip_gain=1.0, activation=torch.relu))
    assert table["var"].tolist() == pytest.approx([1.0] + [1.04, 1.08] * 4, rel=1e-3)
    assert table.residual_var[1:].tolist() == pytest.approx([1.0] * 8, rel=1e-3)
    assert (table.mean_sq[1:] < 1e-6).all()


def test_batchnorm_gains_068_a_block():
    table = expected_signal(create_model("resnet50", 10, he_init=True))
    assert table[table.stage == 2]["var"].diff().dropna().tolist() == pytest.approx([1 - 1 / math.pi] * 5, rel=1e-3)


def test_zero_padding_is_counted_from_the_taps():
    # a 3 x 3 kernel on a 3 x 3 map sees (7 / 9)^2 of its taps on average: variance without any mean
    out = conv(PlainConv2d(8, 8, 3, init_gain=1.0), Activated(0.0, 0.0, 1.0, size=3))
    assert out.V == pytest.approx((7 / 9) ** 2)


CASES = {
    "nf": ("nf_resnet50", {"skip_gain": 1.0}, "var", 0.08),
    "nf branch": ("nf_resnet50", {"skip_gain": 1.0}, "residual_var", 0.12),
    "bn": ("resnet50", {"he_init": True}, "var", 0.12),
    "bn mean": ("resnet50", {"he_init": True}, "mean_sq", 0.25),
    "no ws, mean": ("nf_resnet50", {"skip_gain": 1.0, "standardize": False}, "mean_sq", 0.25),
    "nfnet": ("nfnet_f0", {"skip_gain": 1.0}, "var", 0.15),
}


@pytest.mark.parametrize("case", CASES)
def test_measurement_agrees_within_sampling_error(case):
    name, overrides, column, tolerance = CASES[case]
    measured, expected = [], None
    for seed in range(3):
        torch.manual_seed(seed)
        model = create_model(name, 10, **overrides)
        measured.append(signal_propagation(model, torch.randn(4, 3, 96, 96))[column])
        expected = expected_signal(model, 96)[column]
    mean = sum(measured) / 3
    assert mean[1:].tolist() == pytest.approx(expected[1:].tolist(), rel=tolerance)
