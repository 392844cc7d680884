"""Tests of shadows.

Evidence: their variance and mean against those of the maps, for the common operations of networks. Constants by
quadrature.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from workbench.models.activations import gamma
from workbench.normfree.shadows import Shadows, is_constant, per_row, spread

SHAPE = (16, 64, 16, 16)
TURN = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0].view(64, 64, 1, 1)


def swish(x):
    return x * torch.sigmoid(x)


def shuffled(x):
    return x.view(16, 4, 16, 16, 16).transpose(1, 2).reshape(SHAPE)


def gated(x):
    return x * torch.sigmoid(3 * F.relu(x).mean((2, 3), keepdim=True))


def selected(x):  # two paths weighted by a softmax, like selective kernels
    turned = F.conv2d(x, TURN)
    paths = torch.stack([x, turned.relu()], 1)
    return (paths * (paths.mean((3, 4), keepdim=True) * 5).softmax(1)).sum(1)


def scaled(x):
    return x * torch.linspace(0.2, 2.0, 64).view(-1, 1, 1) + torch.linspace(-1, 1, 64).view(1, -1, 1, 1)


def halves(x):
    a, b = scaled(x).chunk(2, 1)
    return torch.cat([a.relu(), b * 3], 1)


OPERATIONS = {
    **{f.__name__: f for f in (F.relu, F.gelu, F.silu, F.hardswish, F.elu, F.softplus, torch.tanh, swish)},
    "leaky": lambda x: F.leaky_relu(x, 0.2),
    "prelu": lambda x: F.prelu(x, torch.linspace(0, 1, 64)),
    "in place": lambda x: F.relu_(x + 0.5),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "twice the same": lambda x: x + 2 * x.relu(),
    "glu": lambda x: F.glu(x, 1),
    "gate by halves": lambda x: x[:, :32] * torch.sigmoid(x[:, 32:]),
    "concatenated": lambda x: torch.cat([x, 3 * x[:, :16]], 1),
    "padded with channels": lambda x: F.pad(x, (0, 0, 0, 0, 32, 32)),
    "upsampled": lambda x: F.interpolate(x.relu(), scale_factor=2),
    "group norm": lambda x: F.group_norm(scaled(x), 1),
    "dropout": lambda x: F.dropout(x, 1e-6, True),
    "mean over channels": lambda x: x.mean(1, keepdim=True).expand(SHAPE),
    "largest": lambda x: x.relu() + F.adaptive_avg_pool2d(x.relu(), 1),
    **{f.__name__: f for f in (shuffled, gated, selected, scaled, halves)},
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_shadow_has_the_variance_and_mean_of_its_map(name):
    x = torch.randn(SHAPE)
    with torch.no_grad(), Shadows([x]) as shadows:
        out = OPERATIONS[name](x)
    shadow, maps = shadows.shadows[out], out.transpose(0, 1).flatten(1).double()
    assert spread(shadow) == pytest.approx(maps.var(1, correction=0).mean().item(), rel=0.03, abs=3e-4)
    assert shadow.mean().item() == pytest.approx(maps.mean().item(), abs=0.01)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 3, groups=4, bias=False),
        nn.Conv2d(64, 64, 3, groups=64),
        nn.ConvTranspose2d(64, 48, 4, 2, 1),
        nn.Sequential(nn.Flatten(2), nn.Linear(16 * 16, 64)),
    ],
    ids=["dense", "grouped", "depthwise", "transposed", "linear"],
)
def test_the_variance_after_a_product_follows_from_its_weights(layer):
    """Inputs are normal with mean 0. Weights and biases are those of torch."""
    x = torch.randn(SHAPE)
    with torch.no_grad(), Shadows([x]) as shadows:
        out = layer(x)
    predicted = spread(shadows.shadows[out])
    maps = out.transpose(0, 2).flatten(1) if out.ndim == 3 else out[..., 4:-4, 4:-4].transpose(0, 1).flatten(1)
    assert predicted == pytest.approx(maps.var(1, correction=0).mean().item(), rel=0.06)


def test_a_mean_passes_through_the_sums_of_the_weights():
    layer, x = nn.Conv2d(64, 64, 3, bias=False), torch.randn(SHAPE)
    layer.weight.data += 0.02
    with torch.no_grad(), Shadows([x]) as shadows:
        out = layer(x.relu())
    assert shadows.shadows[out].mean().item() == pytest.approx(out.mean().item(), rel=0.05)


@pytest.mark.parametrize("fn", [F.relu, F.gelu, F.silu, torch.tanh])
def test_one_over_the_deviation_is_gamma(fn):
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad(), Shadows([x]) as shadows:
        out = fn(x)
    assert spread(shadows.shadows[out]) ** -0.5 == pytest.approx(gamma(fn), rel=1e-3)


def test_fresh_shadows_are_standard_normal_and_independent():
    shadows = Shadows([torch.zeros(1)])
    a, b = shadows.fresh(), shadows.fresh()
    assert spread(a) == pytest.approx(1.0, abs=1e-4) and abs(a.mean().item()) < 1e-6
    assert spread(a + b) == pytest.approx(2.0, rel=0.01)
    again = Shadows([torch.zeros(1)])
    assert torch.equal(a, again.fresh()) and torch.equal(b, again.fresh())


def test_other_layouts_keep_the_distribution_and_borders_do_not_count():
    x = torch.randn(SHAPE)
    with torch.no_grad(), Shadows([x]) as shadows:
        channels_last = scaled(x).permute(0, 2, 3, 1).clone()
        back = channels_last.flatten(1, 2).transpose(1, 2).reshape(SHAPE)
        padded = F.pad(x, (3, 3, 3, 3))
    expected = scaled(x).transpose(0, 1).flatten(1).var(1).mean().item()
    assert spread(shadows.shadows[channels_last]) == pytest.approx(expected, rel=0.1)
    assert spread(shadows.shadows[back]) == pytest.approx(expected, rel=0.2)
    assert torch.equal(shadows.shadows[padded], shadows.shadows[x])


def test_pooled_maps_are_constant_and_others_are_not():
    x = torch.randn(2, 8, 5, 5)
    with torch.no_grad(), Shadows([x]) as shadows:
        mean = x.relu().mean((2, 3))
        pooled = [mean, F.adaptive_avg_pool2d(x.relu(), 1), F.avg_pool2d(x.relu(), 5), F.max_pool2d(x, 5)]
        gate = torch.sigmoid(F.conv2d(pooled[1], torch.randn(8, 8, 1, 1)))
        windows = F.avg_pool2d(x, 2)
    assert all(is_constant(shadows.shadows[t]) for t in [*pooled, gate])
    assert not is_constant(shadows.shadows[windows])
    assert shadows.shadows[mean].mean().item() == pytest.approx((2 * torch.pi) ** -0.5, rel=1e-3)


def test_tensors_that_do_not_come_from_the_input_have_no_shadow():
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad(), Shadows([x]) as shadows:
        others = [torch.zeros_like(x), x.new_ones(3), torch.rand(3), torch.ones(2) * 2]
        made = x + others[0]
    assert not any(t in shadows.shadows for t in others) and made in shadows.shadows


def test_rows_stand_for_channels_evenly():
    assert per_row(torch.arange(64.0))[:, 0].tolist() == list(range(64))
    assert per_row(torch.arange(128.0))[:3, 0].tolist() == [1, 3, 5]
    assert per_row(torch.tensor([5.0, 7.0]))[:, 0].tolist() == [5.0] * 32 + [7.0] * 32
