"""Gradient noise scale.

Evidence: two batches by hand, the paper's formulas on stored gradients, a regression with known covariance, and the
coverage of the interval. The model stays unchanged.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.unchanged import unchanged
from torch import nn

from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.probes import gradient_noise_scale
from workbench.probes.noise import noise_scale_of


def estimates_of_the_paper(gradients: np.ndarray, b: int) -> tuple[float, float]:
    """Estimate tr(Sigma) and |G|^2 by appendix A.1, from gradients (n, D) of n batches of b samples.

    The mean gradient is that of the large batch.
    """
    n = len(gradients)
    small, large = np.square(gradients).sum(1).mean(), np.square(gradients.mean(0)).sum()
    return (small - large) / (1 / b - 1 / (n * b)), (n * b * large - b * small) / (n * b - b)


def mean_of(out, y):
    """Loss whose gradient, for a linear model without bias, is the mean of x."""
    return out.mean()


def linear(size: int) -> nn.Linear:
    return nn.Linear(size, 1, bias=False, dtype=torch.float64)


def test_two_batches_by_hand():
    """The gradients (3, 4) and (5, 4), b = 2, have mean (4, 4) and squares 1 + 1 around it.

    So tr = 2 * 2 and |G|^2 = 32 - 4 / 4.
    """
    x = torch.tensor([[1, 8], [5, 0], [9, 4], [1, 4]], dtype=torch.float64)
    estimate = gradient_noise_scale(linear(2), mean_of, [(x[:2], x[:2]), (x[2:], x[2:])])
    assert (estimate.trace, estimate.grad_sq, estimate.noise_scale) == pytest.approx((4, 31, 4 / 31))
    assert (estimate.batch, estimate.batches, estimate.interval) == (2, 2, (0, math.inf))
    assert "interval" in estimate.note


def test_the_jackknife_equals_leaving_out_each_batch():
    x = torch.randn(7, 3, 5, dtype=torch.float64) + 1
    estimate = gradient_noise_scale(linear(5), mean_of, zip(x, x, strict=True))
    gradients = x.mean(1).numpy()
    trace, grad_sq = estimates_of_the_paper(gradients, 3)
    assert (estimate.trace, estimate.grad_sq, estimate.noise_scale) == pytest.approx((trace, grad_sq, trace / grad_sq))
    without = [estimates_of_the_paper(np.delete(gradients, i, 0), 3) for i in range(7)]
    ratios = np.array([g / t for t, g in without])
    error = math.sqrt(6 / 7 * np.square(ratios - ratios.mean()).sum())
    ends = [grad_sq / trace + side * 2.446912 * error for side in (1, -1)]  # t of 6 degrees of freedom, 97.5 %
    assert ends[1] > 0 and estimate.interval == pytest.approx((1 / ends[0], 1 / ends[1]))
    assert estimate.note == ""


def test_estimates_of_a_regression_with_known_covariance():
    """For y = e, x ~ N(0, I) and e ~ N(0, s^2), the gradient is x (x . w - e).

    It has mean w and covariance (|w|^2 + s^2) I + w w'. Twenty estimates are right on average, and at most two
    intervals miss the truth.
    """
    size, s, b = 20, 2.0, 8
    model = linear(size)
    w = model.weight.detach().flatten()
    w.copy_(torch.linspace(-0.5, 0.5, size))
    grad_sq = w.square().sum().item()
    trace = size * (grad_sq + s**2) + grad_sq
    half_square = lambda out, y: 0.5 * (out - y).square().mean()
    estimates = []
    for _ in range(20):
        x, e = torch.randn(50, b, size, dtype=torch.float64), torch.randn(50, b, 1, dtype=torch.float64)
        estimates.append(gradient_noise_scale(model, half_square, zip(x, s * e, strict=True)))
    # 2 sqrt(w' Sigma w / samples)
    error = 2 * math.sqrt((w @ w + s**2) * w @ w + (w @ w) ** 2) / math.sqrt(20 * 50 * b)
    assert np.mean([estimate.trace for estimate in estimates]) == pytest.approx(trace, rel=0.03)
    assert np.mean([estimate.grad_sq for estimate in estimates]) == pytest.approx(grad_sq, abs=2.5 * error)
    assert sum(estimate.interval[0] < trace / grad_sq < estimate.interval[1] for estimate in estimates) >= 18
    assert np.median([estimate.interval[1] / estimate.interval[0] for estimate in estimates]) < 4


@pytest.mark.parametrize("batches", [4, 16])
@pytest.mark.parametrize("signal", [0.1, 1.0, 10.0])
def test_the_interval_covers_the_truth(batches, signal):
    """`signal` is the number of samples over the noise scale: 0.1 is nearly all noise, 10 is a clear signal."""
    rng = np.random.default_rng(0)
    size, b = 100, 8
    true = size * b * batches / (size * signal)
    mean = np.full(size, math.sqrt(size / true / size))
    inside = []
    for _ in range(300):
        g = mean + rng.standard_normal((batches, size)) / math.sqrt(b)
        d = g - g.mean(0)
        estimate = noise_scale_of(np.square(g.mean(0)).sum(), np.square(d).sum(1), d @ g.mean(0), b)
        inside.append(estimate.interval[0] <= true <= estimate.interval[1])
    assert 0.92 < np.mean(inside) <= 1


def test_pure_noise_gives_an_infinite_noise_scale_and_a_note():
    x = torch.randn(6, 4, 30, dtype=torch.float64)
    x -= x.mean((0, 1))  # gradients with mean 0, so the estimate of |G|^2 is negative
    estimate = gradient_noise_scale(linear(30), mean_of, zip(x, x, strict=True))
    assert estimate.grad_sq < 0 < estimate.trace
    assert estimate.noise_scale == estimate.interval[1] == math.inf
    assert "noise of 24 samples" in estimate.note


def test_equal_batches_have_no_noise():
    x = torch.ones(2, 3, dtype=torch.float64)
    estimate = gradient_noise_scale(linear(3), mean_of, [(x, x)] * 4)
    assert (estimate.noise_scale, estimate.interval, estimate.trace, estimate.grad_sq) == (0, (0, 0), 0, 3)
    assert "no noise" in estimate.note
    assert math.isnan(gradient_noise_scale(linear(3), mean_of, [(0 * x, x)] * 4).noise_scale)
    two_equal = gradient_noise_scale(linear(3), mean_of, [(x, x), (x, x), (2 * x, x)])
    assert two_equal.interval == (0, math.inf)


def test_the_model_stays_unchanged_and_both_passes_use_the_same_random_numbers():
    model = create_model("resnet_tiny", 10, dropout=0.5, stochastic_depth=0.5).train()
    data = torch.utils.data.TensorDataset(torch.randn(32, 3, 16, 16), torch.randint(10, (32,)))
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    F.cross_entropy(model(data.tensors[0]), data.tensors[1]).backward()
    state = torch.get_rng_state()
    with unchanged(model), torch.no_grad():
        estimate = gradient_noise_scale(model, F.cross_entropy, loader)

    batches = list(loader)
    torch.set_rng_state(state)
    kept = []
    for x, y in batches:
        loss = F.cross_entropy(model(x), y)
        kept.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).numpy())
    trace, grad_sq = estimates_of_the_paper(np.stack(kept).astype(np.float64), 4)
    assert (estimate.trace, estimate.grad_sq) == pytest.approx((trace, grad_sq), rel=1e-6)
    assert estimate.batches == 8


def test_frozen_parameters_do_not_count():
    model = nn.Sequential(linear(3), nn.Linear(1, 1, bias=False, dtype=torch.float64))
    model[0].requires_grad_(False)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    estimate = gradient_noise_scale(model, mean_of, zip(x, x, strict=True))
    trace, _ = estimates_of_the_paper(model[0](x).mean(1).numpy(), 2)
    assert estimate.trace == pytest.approx(trace)


def test_bad_input_is_refused():
    x = torch.ones(4, 3, dtype=torch.float64)
    good = [(x, x), (2 * x, x)]
    cases = [
        (linear(3), mean_of, good[:1], "got 1 of .4. samples"),
        (linear(3), mean_of, [], "got 0 of"),
        (linear(3), mean_of, [*good, (x[:1], x[:1])], "got 3 of .1, 4. samples.*drop_last"),
        (linear(3), mean_of, (x, x), "`batches` .* .x, y."),
        (linear(3), lambda out, y: out, good, "shape .4, 1."),
        (linear(3), lambda out, y: out.mean() * math.inf, good, "got (-)?inf"),
        (linear(3).requires_grad_(False), mean_of, good, "model.requires_grad_"),
    ]
    for model, criterion, batches, offending in cases:
        with pytest.raises(WorkbenchError, match=offending):
            gradient_noise_scale(model, criterion, batches)
