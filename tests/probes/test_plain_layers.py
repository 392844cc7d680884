"""Tests of networks without residual additions, which are measured and judged layer by layer.

Evidence: moments by hooks. The modules that are taken, for the usual kinds of such networks. Verdicts of sound networks
and of networks with one known fault.
"""

import pytest
import torch
import torch.nn.functional as F
from support.foreign import SmallResNet, UNet
from torch import nn

from workbench.probes import preflight, signal_propagation

IMAGES = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
FEATURES = torch.randn(64, 20, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def vgg(norm: bool = False, in_place: bool = True) -> nn.Sequential:
    layers, channels = [], 3
    for out in (16, 32, 64):
        for _ in range(2):
            layers += [nn.Conv2d(channels, out, 3, padding=1), *[nn.BatchNorm2d(out)] * norm, nn.ReLU(in_place)]
            channels = out
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))


def perceptron(depth: int = 3, width: int = 64, inputs: int = 20) -> nn.Sequential:
    hidden = [layer for _ in range(depth - 1) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), *hidden, nn.Linear(width, 10))


class DenseLayer(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, 12, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def densenet() -> nn.Sequential:
    dense = [DenseLayer(24 + 12 * i) for i in range(4)]
    head = [nn.BatchNorm2d(72), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(72, 10)]
    return nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), *dense, *head)


class Gated(nn.Module):
    """Squeeze-excite without a shortcut. Its gates are no layers of the trunk."""

    def __init__(self):
        super().__init__()
        self.conv, self.reduce, self.expand = nn.Conv2d(8, 8, 3), nn.Linear(8, 2), nn.Linear(2, 8)

    def forward(self, x):
        out = self.conv(x)
        return out * torch.sigmoid(self.expand(F.relu(self.reduce(out.mean((2, 3))))))[:, :, None, None]


class Functional(nn.Module):
    """Multiplies by its own parameters, and normalises in code."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(8, n, 3, 3) / (3 * n**0.5)) for n in (3, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        h = F.relu(F.instance_norm(F.conv2d(x, self.first)))
        return self.head(F.relu(F.conv2d(h, self.second)).mean((2, 3)))


class Tokens(nn.Module):
    """Embedding, attention without a shortcut, and a perceptron per token."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.norm = nn.Embedding(50, 16), nn.Linear(16, 48), nn.LayerNorm(24)
        self.mlp, self.head = nn.Linear(16, 24), nn.Linear(24, 10)

    def forward(self, ids):
        q, k, v = self.qkv(self.embed(ids)).chunk(3, dim=-1)
        h = (q @ k.transpose(1, 2) / 4).softmax(-1) @ v
        return self.head(F.gelu(self.norm(self.mlp(h))).mean(1))


@pytest.mark.parametrize(
    ("build", "x", "paths", "stages"),
    [
        (vgg, IMAGES, ["0", "2", "5", "7", "10", "12", "16"], [0, 0, 1, 1, 2, 2, 3]),
        (lambda: vgg(norm=True), IMAGES, ["0", "3", "7", "10", "14", "17", "22"], [0, 0, 1, 1, 2, 2, 3]),
        (densenet, IMAGES, ["0", "1.conv", "2.conv", "3.conv", "4.conv"], [0] * 5),
        (lambda: UNet(8), IMAGES[:, :1], ["down1.0", "down1.3", "down2.0", "down2.3", "up", "mix.0", "mix.3"], None),
        (perceptron, FEATURES, ["1", "3", "5"], [0] * 3),
        (lambda: perceptron(inputs=3072), IMAGES, ["1", "3", "5"], [0] * 3),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Gated(), Gated(), nn.Conv2d(8, 1, 1)), IMAGES, None, [0, 1, 2]),
        (Functional, IMAGES, ["", ""], [0, 1]),
        (Tokens, torch.randint(50, (4, 12)), ["qkv", "mlp"], [0, 0]),
        (lambda: nn.Linear(20, 10), FEATURES, [""], [0]),
        (
            lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *perceptron(2, 8, 3)),
            IMAGES,
            ["3", "5"],
            [0, 0],
        ),
    ],
    ids=[
        "vgg",
        "vgg-bn",
        "densenet",
        "u-net",
        "mlp",
        "mlp-images",
        "gates",
        "functional",
        "tokens",
        "linear",
        "pooled",
    ],
)
def test_the_layers_of_a_network_without_additions_are_taken(build, x, paths, stages):
    table = signal_propagation(build(), x, backward=True)
    assert table.attrs["unit"] == "layer" and table.path[0] == "" and table.stage[0] == -1
    assert paths is None or table.path[1:].tolist() == paths
    assert stages is None or table.stage[1:].tolist() == stages
    assert (table["var"][1:] > 0).all() and (table.grad_var[1:] > 0).all() and table.residual_var.isna().all()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_layers_are_measured_behind_the_norm_and_before_the_activation(norm, in_place):
    model, seen = vgg(norm, in_place).train(), []
    for module in model[:-3]:
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach().double().clone()))
    signal = signal_propagation(model, IMAGES, backward=True, peak=True)[:-1]
    maps = [IMAGES.double(), *seen[-6:]]
    assert signal["var"].tolist() == pytest.approx(
        [h.var((0, 2, 3), correction=0).mean().item() for h in maps], rel=1e-4
    )
    assert signal.peak.tolist() == pytest.approx([h.abs().max().item() for h in maps], rel=1e-5)


def test_the_gradient_of_a_loss_is_measured_at_each_layer():
    model, grads = perceptron(), []
    for layer in (model[5], model[3], model[1]):
        layer.register_full_backward_hook(lambda m, inputs, outputs: grads.append(outputs[0].double()))
    table = signal_propagation(model, FEATURES, backward=lambda out: out.square().mean())
    expected = [g.var(0, correction=0).mean().item() for g in grads[-3:]][::-1]
    assert table.grad_var[1:].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("build", "x", "count"),
    [
        (vgg, IMAGES, 7),
        (lambda: vgg(norm=True), IMAGES, 7),
        (densenet, IMAGES, 5),
        (lambda: UNet(8), IMAGES[:, :1], 7),
        (perceptron, FEATURES, 3),
    ],
    ids=["vgg", "vgg-bn", "densenet", "u-net", "mlp"],
)
def test_sound_networks_pass_and_the_report_says_that_layers_were_judged(build, x, count):
    model = build()
    for module in model.modules() if build is vgg else ():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    report = preflight(model, x)
    assert report.ok, report
    assert report.table.verdict.tolist() == ["", *["sound"] * count]
    assert f"{count} of {count} layers" in str(report) and "block" not in str(report)


def faulty(change) -> nn.Sequential:
    model = perceptron(8)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        change(model)
    return model


class Cut(nn.Module):
    def forward(self, x):
        return x.detach()


def scale_all(factor):
    return lambda model: [p.mul_(factor) for p in model.parameters()]


@pytest.mark.parametrize(
    ("change", "layer", "verdict"),
    [
        (scale_all(2.5), 1, "grows"),
        (scale_all(0.25), 3, "vanishes"),
        (lambda model: model[7].weight.zero_(), 4, "vanishes"),
        (lambda model: model[7].bias[:40].fill_(-100), 5, "dead"),
        (lambda model: model[7].bias.fill_(1000), 4, "mean shift"),
        (lambda model: model[7].weight.fill_(float("inf")), 4, "overflows"),
        (lambda model: model.__setitem__(8, Cut()), 5, "cut off"),
    ],
    ids=["grows", "vanishes", "zero", "dead", "shift", "inf", "cut"],
)
def test_a_fault_names_its_layer(change, layer, verdict):
    report = preflight(faulty(change), FEATURES.repeat(4, 1))
    assert (layer, verdict) in [(fault.block, fault.verdict) for fault in report.faults], report
    module = report.table.path[layer]
    assert f"layer {layer} ({module}): {verdict}" in str(report)
    assert report.table.verdict[layer] == verdict


def test_networks_with_additions_still_go_block_by_block():
    table = signal_propagation(SmallResNet(), IMAGES)
    assert table.attrs["unit"] == "block" and len(table) == 5
