"""Tests of units. Evidence: a huge gradient of one output scales that output alone, in every layer of torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from workbench.optim import AGC, clip_grad_agc_, groups_table, param_groups
from workbench.probes import gradient_ratios
from workbench.training.cause import largest_ratios


class Columns(nn.Module):
    """A linear layer whose weight is (inputs, outputs), written in several ways."""

    def __init__(self, how="matmul"):
        super().__init__()
        self.how, self.weight, self.bias = how, nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.zeros(6))

    def forward(self, x):
        if self.how == "matmul":
            return x @ self.weight + self.bias
        if self.how == "addmm":
            return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(x.size()[:-1] + (6,))  # noqa: RUF005
        if self.how == "einsum":
            return torch.einsum("bi,io->bo", x, self.weight) + self.bias
        return F.linear(x, self.weight.T, self.bias)


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        return x @ self.weight.t()


class OwnTransposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 2, 2))

    def forward(self, x):
        return F.conv_transpose2d(x, self.weight, groups=2)


def transposed(dims, groups=1):
    return (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1](4, 6, 2, groups=groups)


LAYERS = {  # name: (layer, input, the axis of the outputs)
    "Linear": (nn.Linear(4, 6), torch.randn(5, 4), -1),
    "Conv1d": (nn.Conv1d(4, 6, 2), torch.randn(2, 4, 5), 1),
    "Conv2d, grouped": (nn.Conv2d(4, 6, 2, groups=2), torch.randn(2, 4, 5, 5), 1),
    "Conv3d": (nn.Conv3d(4, 6, 2), torch.randn(2, 4, 5, 5, 5), 1),
    **{f"ConvTranspose{n}d": (transposed(n), torch.randn(2, 4, *[5] * n), 1) for n in (1, 2, 3)},
    "ConvTranspose2d, grouped": (transposed(2, groups=2), torch.randn(2, 4, 5, 5), 1),
    "your conv_transpose2d": (OwnTransposed(), torch.randn(2, 4, 5, 5), 1),
    **{f"x @ W as {how}": (Columns(how), torch.randn(5, 4), -1) for how in ("matmul", "addmm", "einsum", "linear")},
    "x @ W.t()": (Rows(), torch.randn(5, 4), -1),
}


def with_one_huge_output(layer, x, axis):
    """Give the layer tiny gradients, but huge ones for its output number 2. Return its weights."""
    out = layer(x)
    weight = torch.full(out.shape, 1e-6)
    weight.select(axis, 2).fill_(1e6)
    layer.zero_grad()
    (out * weight).sum().backward()
    return [p for p in layer.parameters() if p.ndim >= 2]


@pytest.mark.parametrize("name", LAYERS)
def test_one_output_with_a_huge_gradient_is_the_only_one_that_is_scaled(name):
    layer, x, axis = LAYERS[name]
    (p,) = with_one_huge_output(layer, x, axis)
    before = p.grad.clone()
    model = nn.Sequential(layer)  # the groups exempt the last layer, unless told otherwise
    stats = clip_grad_agc_(param_groups(model, clip=0.01, classifier=()))
    outputs = layer(x).shape[axis]
    table = stats.table().set_index("parameter")
    assert table.loc["0.weight", "units"] == outputs
    assert table.loc["0.weight", "clipped_share"] == pytest.approx(1 / outputs)
    changed = p.grad != before
    assert 0 < changed.sum() <= p.numel() / outputs
    limit = 0.01 * p.detach()[changed].norm()
    torch.testing.assert_close(p.grad[changed].norm(), limit)


@pytest.mark.parametrize("name", ["ConvTranspose2d", "ConvTranspose2d, grouped", "x @ W as matmul", "Linear"])
def test_agc_and_the_probes_use_the_same_units(name):
    layer, x, axis = LAYERS[name]
    model = nn.Sequential(layer)
    (p,) = with_one_huge_output(layer, x, axis)
    outputs, grad = layer(x).shape[axis], p.grad.clone()
    row = gradient_ratios(model).set_index("parameter").loc["0.weight"]
    assert row["units"] == outputs and row["median"] < 1e-3 < 10 < row["max"]
    assert largest_ratios(model)[0].item() == pytest.approx(row["max"])
    clip_grad_agc_(param_groups(model, classifier=()))
    by_function, p.grad = p.grad, grad
    optimizer = torch.optim.SGD(param_groups(model, classifier=()), lr=0.0)
    agc = AGC(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert torch.equal(p.grad, by_function)
    assert agc.stats.ratio_quantile(1.0) == pytest.approx(row["max"])


def test_a_parametrized_transposed_convolution_has_the_units_of_its_outputs():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.ConvTranspose2d(4, 6, 2)))
    (group,) = [g for g in param_groups(model, classifier=()) if g["name"].startswith("weights")]
    assert group["names"] == ["0.parametrizations.weight.original"] and group["units"] == 1


def test_a_layer_norm_over_several_dimensions_is_a_gain_and_one_unit():
    model = nn.Sequential(nn.LayerNorm([3, 4]), nn.Flatten(), nn.Linear(12, 2))
    table = groups_table(param_groups(model)).set_index("parameter")
    assert table.loc[["0.weight", "0.bias"], "weight_decay"].tolist() == [0.0, 0.0]
    model(torch.randn(5, 3, 4)).square().sum().mul(1e6).backward()
    stats = clip_grad_agc_(param_groups(model))
    assert stats.table().set_index("parameter").loc["0.weight", "units"] == 1
    torch.testing.assert_close(model[0].weight.grad.norm(), 0.01 * model[0].weight.norm())


@pytest.mark.parametrize(
    ("layer", "units"),
    [
        (nn.Bilinear(2, 3, 5), [5]),
        (nn.Embedding(7, 3), [7]),
        (nn.EmbeddingBag(7, 3), [7]),
        (nn.LSTM(3, 4, proj_size=2), [16, 16, 2]),
        (nn.GRUCell(3, 4), [12, 12]),
        (nn.MultiheadAttention(4, 2), [12, 4]),
        (nn.PReLU(3), [1]),
        (nn.RMSNorm([2, 3]), [1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_units_of_the_other_layers_of_torch(layer, units):
    for p in layer.parameters():
        p.grad = torch.ones_like(p)
    stats = clip_grad_agc_(param_groups(layer, classifier=()))
    shaped = {name for name, p in layer.named_parameters() if p.ndim >= 2 or len(list(layer.parameters())) == 1}
    table = stats.table()
    assert sorted(table[table.parameter.isin(shaped)].units.tolist()) == sorted(units)


def test_our_networks_have_the_same_groups_as_before():
    from workbench.models import create_model

    for group in param_groups(create_model("nfnet_micro", 10)):
        assert "units" not in group and group["name"] in ("weights", "gains_biases", "classifier")
