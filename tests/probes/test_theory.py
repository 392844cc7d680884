"""Theory of signal propagation. Evidence: the paper's algebra in closed form, and measurements."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.probes import compare_signal, expected_signal, signal_propagation
from workbench.probes.trunk import Activated, Trunk, activate, avg_pool, convolve, max_pool, noise, pixels_of


def test_relu_moments_in_closed_form():
    a = activate(torch.relu, Trunk(0.0, 0.0, 1.0))
    assert a.A == pytest.approx(1 / math.sqrt(2 * math.pi), rel=1e-5)
    assert a.C == pytest.approx((1 - 1 / math.pi) / 2, rel=1e-5)


def test_relu_on_varying_channel_means_gives_the_arc_cosine_kernel():
    M, V = 0.6, 0.4
    rho = M / (M + V)
    kernel = (math.sqrt(1 - rho**2) + rho * (math.pi - math.acos(rho))) / (2 * math.pi) * (M + V)
    a = activate(torch.relu, Trunk(0.0, M, V))
    assert a.B == pytest.approx(kernel, rel=1e-3)
    assert a.B + a.C == pytest.approx((M + V) / 2, rel=1e-3)


def test_scaled_standardisation_gives_mean_zero_and_variance_one():
    # the exact gamma of relu is sqrt(2 / (1 - 1 / pi))
    relu = activate(torch.relu, Trunk(0.0, 0.0, 1.0))
    out = convolve(relu, c=2 / (1 - 1 / math.pi), kernel_size=1, stride=1, channels=64)
    assert (out.m, out.M) == (0.0, pytest.approx(0.0, abs=1e-9))
    assert out.V == pytest.approx(1.0, rel=1e-5)


def test_a_he_initialised_convolution_keeps_the_second_moment_and_passes_on_the_mean():
    relu = activate(torch.relu, Trunk(0.0, 0.0, 1.0))
    out = convolve(relu, c=2.0, kernel_size=1, stride=1, channels=64, centred=False)
    assert out.M == pytest.approx(1 / math.pi, rel=1e-4)
    assert out.V == pytest.approx(1 - 1 / math.pi, rel=1e-4)


def test_a_max_pool_of_white_noise_gives_the_maximum_of_nine_normals():
    pooled = max_pool(Trunk(0.0, 0.0, 1.0))
    # from tables of order statistics
    assert (pooled.m, pooled.V) == (pytest.approx(1.48501, abs=1e-4), pytest.approx(0.35735, abs=1e-4))


def test_variance_follows_the_papers_staircase():
    table = expected_signal(create_model("nf_resnet26_cifar", 10, skip_gain=1.0, activation=torch.relu))
    assert table["var"].tolist() == pytest.approx([1.0] + [1.04, 1.08] * 4, rel=1e-3)
    assert table.residual_var[1:].tolist() == pytest.approx([1.0] * 8, rel=1e-3)
    assert (table.mean_sq[1:] < 1e-6).all()


def test_batchnorm_gains_068_per_block():
    table = expected_signal(create_model("resnet50", 10, he_init=True))
    assert table[table.stage == 2]["var"].diff().dropna().tolist() == pytest.approx([1 - 1 / math.pi] * 5, rel=1e-3)


def test_zero_padding_reduces_the_variance_by_its_share_of_taps():
    # on a 3 x 3 map, a 3 x 3 kernel has on average (7 / 9)^2 of its taps on pixels
    out = convolve(Activated(0.0, 0.0, 1.0, size=3), c=1.0, kernel_size=3, stride=1, channels=8, centred=False)
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
def test_measurements_agree_with_the_theory_within_sampling_error(case):
    name, overrides, column, tolerance = CASES[case]
    measured, expected = [], None
    for seed in range(3):
        torch.manual_seed(seed)
        model = create_model(name, 10, **overrides)
        measured.append(signal_propagation(model, torch.randn(4, 3, 96, 96))[column])
        expected = expected_signal(model, 96)[column]
    mean = sum(measured) / 3
    assert mean[1:].tolist() == pytest.approx(expected[1:].tolist(), rel=tolerance)


# ---- backward


def test_each_branch_adds_to_the_gradient():
    """An identity block of a ReLU network adds alpha^2 / beta^2 (gamma^2 / 2)^3, with gamma^2 = 2 / (1 - 1 / pi)."""
    table = expected_signal(create_model("nf_resnet26_cifar", 10, skip_gain=1.0, activation=torch.relu))
    growth = 1 + 0.04 / 1.04 / (1 - 1 / math.pi) ** 3
    assert table.grad_var[8] == 1.0
    assert table.grad_var[7] == pytest.approx(growth, rel=1e-3)
    assert table.grad_var[5] / table.grad_var[6] == pytest.approx(growth, rel=1e-3)


def test_a_pool_gives_each_of_four_pixels_a_quarter_of_the_gradient():
    assert avg_pool(Activated(0.0, 0.0, 1.0, back=1.0)).back == 1 / 16
    out = convolve(Activated(0.0, 0.0, 1.0), c=2.0, kernel_size=3, stride=2, channels=8, out=24)
    assert out.back == pytest.approx(2.0 * 3 / 4)


BACKWARD = {
    "nf": ("nf_resnet50", {"skip_gain": 1.0, "width": 1}, 0.2),
    "bn": ("resnet50", {"he_init": True, "width": 1}, 0.25),
    "average pools": ("nf_regnet_b0", {"skip_gain": 1.0}, 0.12),
    "no ws": ("nf_resnet26_cifar", {"skip_gain": 1.0, "standardize": False}, 0.25),
    "silu": ("nf_resnet26_cifar", {"skip_gain": 1.0, "activation": "silu"}, 0.12),
}


@pytest.mark.parametrize("case", BACKWARD)
def test_measured_gradients_agree_with_the_theory(case):
    name, overrides, tolerance = BACKWARD[case]
    table = compare_signal(create_model(name, 10, **overrides).train(), torch.randn(16, 3, 64, 64), backward=True)
    assert table.grad_var.tolist() == pytest.approx(table.expected_grad_var.tolist(), rel=tolerance)


# ---- images: correlations in space


def blurred(n: int, size: int, seed: int = 0) -> torch.Tensor:
    """Make normal fields that are correlated over a few pixels and over channels, like the moments of images."""
    generator = torch.Generator().manual_seed(seed)
    common, per_channel = (torch.randn(n, c, size + 8, size + 8, generator=generator) for c in (1, 3))
    x = torch.nn.functional.avg_pool2d(common + 0.3 * per_channel, 5, 1)[..., :size, :size]
    return x / x.std()


def test_moments_of_pixels_by_hand():
    """The 5 x 5 average of white noise has correlation (1 - i/5)(1 - j/5).

    Of the variance, 1 part in 1.09 is common to the 3 channels.
    """
    pixels = pixels_of(blurred(64, 64))
    i = np.arange(8)
    assert pixels.R[:8, :8] == pytest.approx(np.outer((1 - i / 5).clip(0), (1 - i / 5).clip(0)), abs=0.03)
    assert pixels.C == pytest.approx(1.0, rel=0.02)
    assert pixels.average[0, 0] == pytest.approx((1 + 0.09 / 3) / 1.09, rel=0.02)


def test_measured_moments_of_white_noise_equal_those_of_the_theory():
    x = torch.randn(32, 3, 32, 32)
    pixels = pixels_of(x)
    out = [convolve(p, c=1.0, kernel_size=3, stride=2, channels=3) for p in (pixels, noise(32))]
    assert out[0].V == pytest.approx(out[1].V, rel=0.02)
    assert np.abs(out[0].R).ravel()[1:].max() < 0.03


def test_relu_maps_correlations_by_the_arc_cosine_kernel():
    rho = np.array([[1.0, 0.9, 0.5], [0.0, -0.3, -0.9], [0.2, 0.7, 0.1]])
    a = activate(torch.relu, Trunk(0.0, 0.0, 1.0, R=rho))
    kernel = (np.sqrt(1 - rho**2) + rho * (np.pi - np.arccos(rho))) / (2 * np.pi)
    assert a.R == pytest.approx((kernel - 1 / (2 * np.pi)) / (0.5 - 1 / (2 * np.pi)), abs=0.01)


def test_an_average_pool_keeps_the_common_variance_of_neighbours():
    """The average of four pixels with variance 1 and correlation r has variance (1 + 3 r) / 4."""
    r = 0.6
    pooled = avg_pool(Activated(0.0, 0.0, 1.0, R=np.array([[1.0, r], [r, r]])))
    assert pooled.C == pytest.approx((1 + 3 * r) / 4)


def test_a_max_pool_of_correlated_values_agrees_with_a_simulation():
    x = blurred(256, 32)[:, :1]
    pixels = pixels_of(x)
    pooled = torch.nn.functional.max_pool2d(x, 3, 2)
    out = max_pool(Trunk(0.0, 0.0, pixels.C, R=pixels.R))
    assert out.m == pytest.approx(pooled.mean().item() - x.mean().item(), rel=0.05)
    assert out.V == pytest.approx(pooled.var().item(), rel=0.05)


IMAGE_CASES = {
    "nf": ("nf_resnet26_cifar", {"skip_gain": 1.0}, "var", 0.1),
    "nf branch": ("nf_resnet26_cifar", {"skip_gain": 1.0}, "residual_var", 0.2),
    "bn": ("resnet26_cifar", {"he_init": True}, "var", 0.12),
    "average pools": ("nf_regnet_b0", {"skip_gain": 1.0}, "var", 0.2),
    "max pool": ("nf_resnet50", {"skip_gain": 1.0}, "var", 0.12),
}


@pytest.mark.parametrize("case", IMAGE_CASES)
def test_measurements_on_images_agree_with_the_theory(case):
    name, overrides, column, tolerance = IMAGE_CASES[case]
    tables = []
    for seed in range(4):
        torch.manual_seed(seed)
        tables.append(compare_signal(create_model(name, 10, **overrides), blurred(16, 64, seed), natural=True))
    measured, expected = (sum(t[c] for t in tables) / 4 for c in (column, f"expected_{column}"))
    assert measured[1:].tolist() == pytest.approx(expected[1:].tolist(), rel=tolerance)


def test_images_that_do_not_vary_are_refused():
    with pytest.raises(WorkbenchError, match=r"`images` .* vary"):
        expected_signal(create_model("nf_resnet_tiny", 10), images=torch.ones(2, 3, 28, 28))


# ---- the design


def test_a_sound_network_equals_its_design():
    for name in ("nf_resnet50", "nfnet_f0", "nf_regnet_b0", "timm_nf_resnet50", "timm_eca_nfnet_l0"):
        model = create_model(name, 10)
        for module in model.modules():
            if hasattr(module, "gain"):
                torch.nn.init.ones_(module.gain)
        built, designed = expected_signal(model, 64), expected_signal(model, 64, designed=True)
        assert built["var"].tolist() == pytest.approx(designed["var"].tolist(), rel=1e-3)
        assert built.residual_var[1:].tolist() == pytest.approx(designed.residual_var[1:].tolist(), rel=1e-3)


def test_the_design_does_not_depend_on_the_built_in_constants():
    model = create_model("nf_resnet26_cifar", 10, skip_gain=1.0)
    before = expected_signal(model, designed=True)
    for block in model.blocks:
        block.conv0.scale, block.beta = 0.1, 7.0
    pd.testing.assert_frame_equal(expected_signal(model, designed=True), before)
    assert expected_signal(model).residual_var[1] < 0.5 * before.residual_var[1]


def test_deviations_are_relative_to_the_expected_values():
    torch.manual_seed(1)
    model, x = create_model("nf_resnet_tiny", 10, skip_gain=1.0), torch.randn(8, 3, 28, 28)
    table = compare_signal(model, x, dead=True)
    assert table.var_deviation[2] == pytest.approx(table["var"][2] / expected_signal(model, 28)["var"][2] - 1)
    assert table.dead.eq(0).all()


@pytest.mark.parametrize("name", ["glu", "log_softmax"])
def test_an_activation_that_mixes_channels_has_no_theory(name):
    with pytest.raises(WorkbenchError, match=r"expected_signal .* elementwise"):
        expected_signal(create_model("nf_resnet26_cifar", 10, activation=name))
