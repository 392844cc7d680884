"""Tests of the removal of BatchNorm from foreign networks.

Evidence: measured variances, of 1 after every convolution and as predicted in the trunk. A pre-activation network by
hand. The numbers that a conversion keeps. The original does not change. Converted networks train as well as their
originals.
"""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from support.foreign import (
    BasicBlock,
    PreActivationBlock,
    PreActivationNet,
    SmallResNet,
    SmallViT,
    SqueezeExcite,
    SqueezeNet,
    UNet,
    double_conv,
)
from torch import nn

from workbench.data.datasets import load_dataset
from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.models.activations import ACTIVATIONS, gamma
from workbench.models.once import standardized_once
from workbench.normfree import normfree
from workbench.normfree.standardized_convs import BranchGain, Scale, Standardized
from workbench.optim import AGC, groups_table, param_groups, warmup_cosine
from workbench.probes import signal_propagation
from workbench.weights.export import fold


class Mobile(nn.Module):
    """A network like MobileNets: expand, depthwise, squeeze-excite, project, with hard-swish and a linear trunk."""

    def __init__(self, channels: int = 32):
        super().__init__()
        mid = 3 * channels
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))
        self.expand = nn.Sequential(nn.Conv2d(channels, mid, 1, bias=False), nn.BatchNorm2d(mid), nn.Hardswish())
        self.depthwise = nn.Conv2d(mid, mid, 3, padding=2, dilation=2, groups=mid, bias=False)
        self.bn, self.se = nn.BatchNorm2d(mid), SqueezeExcite(mid)
        self.project = nn.Sequential(nn.Conv2d(mid, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        h = self.stem(x)
        return h + self.project(self.se(F.hardswish(self.bn(self.depthwise(self.expand(h))))))


def ends(model: nn.Module) -> list[BranchGain]:
    return [m for m in model.modules() if isinstance(m, BranchGain)]


def convolutions(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, Standardized)}


def output_variances(model: nn.Module, x: torch.Tensor) -> dict[str, float]:
    variances = {}
    for name, conv in convolutions(model).items():
        conv.register_forward_hook(
            lambda m, args, out, name=name: variances.update({name: out.var((0, 2, 3), correction=0).mean().item()})
        )
    with torch.no_grad():
        model(x)
    return variances


def without_biases(model: nn.Module) -> nn.Module:
    """Set the biases of convolutions to 0, as in the authors' code. Those of torch would shift the activations."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


# ---- signal propagation


@pytest.mark.parametrize(
    "build",
    [SmallResNet, SqueezeNet, PreActivationNet, lambda: PreActivationNet(activation=nn.GELU()), Mobile],
    ids=["post-activation", "squeeze-excite", "pre-activation", "gelu", "mobile"],
)
def test_convolutions_give_variance_1_and_the_trunk_the_predicted_variance(build):
    result, x = normfree(build().eval(), skip_gain=1.0), torch.randn(16, 3, 64, 64)
    variances = output_variances(result.model, x)
    assert len(variances) >= 4
    for name, variance in variances.items():
        assert variance == pytest.approx(1.0, abs=0.12), name
    table = signal_propagation(result.model, x)[1:]
    assert table.path.tolist() == result.blocks.path.tolist()
    assert table["var"].tolist() == pytest.approx(result.blocks.variance.tolist(), rel=0.12)


@pytest.mark.parametrize("up", ["transposed", "normalised", "upsampled"])
@pytest.mark.parametrize("skip", ["concatenated", "added"])
def test_a_u_net_keeps_its_variance_apart_from_the_effect_of_its_max_pool(up, skip):
    """The maximum of four values of white noise varies 1.4 times as much. For images it is less."""
    torch.manual_seed(1)
    result = normfree(UNet(32, up, skip).eval())
    variances = output_variances(result.model, torch.randn(16, 1, 64, 64))
    assert len(variances) == 7 and all(0.85 < v < 1.5 for v in variances.values()), variances
    assert len(result.blocks) == 0  # an added skip joins two resolutions, which is no residual block
    assert "out" not in variances and type(result.model.out) is nn.Conv2d  # the output layer is not standardised


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_scales_are_gamma_over_beta(activation):
    fn = {"relu": nn.ReLU(), "gelu": nn.GELU(), "silu": nn.SiLU()}[activation]
    result = normfree(without_biases(PreActivationNet(5, activation=fn)))
    for i, block in enumerate(result.model.blocks):
        beta = (1 + 0.04 * i) ** 0.5  # like the authors' code, the converted network divides after the activation
        g = gamma(lambda z, beta=beta: fn(beta * z))
        assert block.conv1.scale == pytest.approx(g, rel=0.01)
        assert block.conv2.module.scale == pytest.approx(gamma(fn), rel=0.002)
        assert result.blocks.variance[i] == pytest.approx(1 + 0.04 * (i + 1), rel=0.01)
    if activation == "relu":
        assert [b.conv1.scale for b in result.model.blocks] == pytest.approx(
            [ACTIVATIONS["relu"][1] / (1 + 0.04 * i) ** 0.5 for i in range(5)], rel=0.01
        )


def test_a_pre_activation_network_equals_a_calculation_by_hand():
    model, x = without_biases(PreActivationNet(2, channels=8)), torch.randn(4, 3, 12, 12)
    new = normfree(model, alpha=0.5, skip_gain=0.7).model

    def conv(h, layer, scale):
        w = layer.weight.double()
        w = w - w.mean((1, 2, 3), keepdim=True)
        w = w / w.square().sum((1, 2, 3), keepdim=True).sqrt()
        return F.conv2d(h, w * scale, layer.bias.double() if layer.bias is not None else None, 1, 1)

    g = ACTIVATIONS["relu"][1]
    h, variance = conv(x.double(), model.conv, 1.0), 1.0
    for block in model.blocks:
        out = conv(h.relu(), block.conv1, g / variance**0.5)
        h = h + 0.5 * 0.7 * conv(out.relu(), block.conv2, g)
        variance += 0.25
    expected = F.linear(h.relu().mean((2, 3)), model.head.weight.double(), model.head.bias.double())
    # a shadow is a sample and the authors' gamma is an estimate, both to three digits
    torch.testing.assert_close(new(x).double(), expected, rtol=1e-3, atol=5e-4)


def test_an_in_place_activation_after_a_removed_norm_does_not_change_the_trunk():
    torch.manual_seed(0)
    model, x = PreActivationNet(activation=nn.ReLU(inplace=True)), torch.randn(2, 3, 16, 16)
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    new, other = normfree(model, skip_gain=1.0).model, normfree(other, skip_gain=1.0).model
    assert isinstance(new.blocks[0].bn1, Scale) and type(other.blocks[0].bn1) is nn.Identity
    assert torch.equal(new(x), other(x))
    new(x).sum().backward()
    other(x).sum().backward()
    assert torch.equal(new.conv.weight.grad, other.conv.weight.grad)


def test_a_factor_of_2_compensates_squeeze_excite():
    model = SqueezeNet()
    for module in model.modules():
        if isinstance(module, SqueezeExcite):
            nn.init.zeros_(module.expand.weight)
            nn.init.zeros_(module.expand.bias)
    result = normfree(model)
    assert result.blocks.scale.tolist() == pytest.approx([0.2 * 2] * 4, rel=1e-3)
    assert result.blocks.gain.tolist() == ["1.0.se", "1.1.se", "2.0.se", "2.1.se"]  # after the gates
    assert normfree(SqueezeNet()).blocks.scale.tolist() == pytest.approx([0.4] * 4, rel=0.1)


def test_a_concatenation_weights_its_parts_by_their_channels():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
            self.conv2, self.bn2 = nn.Conv2d(3, 48, 3), nn.BatchNorm2d(48)
            self.conv3 = nn.Conv2d(64, 8, 1)
            self.fc = nn.Linear(8, 2)

        def forward(self, x):
            both = torch.cat([3 * self.bn1(self.conv1(x)), F.relu(self.bn2(self.conv2(x)))], 1)
            return self.fc(self.conv3(both).mean((2, 3)))

    relu = (1 - 1 / torch.pi) / 2  # its variance
    assert normfree(Dense()).model.conv3.scale ** -2 == pytest.approx((16 * 9 + 48 * relu) / 64, rel=0.01)


def test_measured_variances_replace_expected_variances():
    model = PreActivationNet()
    expected = normfree(model)
    table = signal_propagation(normfree(model, skip_gain=1.0).model, torch.randn(2, 3, 32, 32))
    measured = normfree(model, variances=dict(zip(table.path, table["var"], strict=True)))
    assert measured.blocks.variance.tolist() == pytest.approx(table["var"][1:].tolist(), rel=1e-5)
    four = normfree(model, variances={"blocks.0": 4 * expected.blocks.variance[0]})
    assert four.model.blocks[0].conv1.scale == expected.model.blocks[0].conv1.scale
    assert four.model.blocks[1].conv1.scale == pytest.approx(expected.model.blocks[1].conv1.scale / 2, rel=1e-3)


def test_alpha_sets_the_scale_of_a_branch():
    result = normfree(PreActivationNet(), alpha=0.5, skip_gain=0.3)
    assert result.blocks.scale.tolist() == pytest.approx([0.5] * 3, rel=0.01)
    assert result.blocks.variance.tolist() == pytest.approx([1.25, 1.5, 1.75], rel=0.02)
    assert all(end.skip_gain.item() == pytest.approx(0.3) for end in ends(result.model))


# ---- weights and biases


def trained(model: nn.Module) -> nn.Module:
    """Give the BatchNorms weights and biases like those of a trained network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return model


def test_weights_and_the_weights_and_biases_of_norms_are_kept():
    model = trained(SmallResNet())
    new = normfree(model).model
    for conv, norm in (("conv1", "bn1"), ("layer1.0.conv2", "layer1.0.bn2"), ("layer2.0.downsample.0",) * 2):
        old, made = model.get_submodule(conv), new.get_submodule(conv)
        rows = old.weight.flatten(1) - old.weight.flatten(1).mean(1, keepdim=True)
        direction = rows / rows.norm(dim=1, keepdim=True)
        torch.testing.assert_close(made.weight.flatten(1), direction, rtol=1e-4, atol=1e-6)
        if norm != conv:
            assert torch.equal(made.gain, model.get_submodule(norm).weight)
            assert torch.equal(made.bias, model.get_submodule(norm).bias)
    assert torch.equal(new.fc.weight, model.fc.weight) and torch.equal(new.fc.bias, model.fc.bias)


def test_the_first_layers_compute_almost_the_same_as_with_batch_norm():
    """In training mode on N(0, 1), the difference is the mean of a filter, about a 27th."""
    model, x = trained(SmallResNet()).train(), torch.randn(32, 3, 32, 32)
    new = normfree(model).model
    with torch.no_grad():
        a, b = model.bn1(model.conv1(x)), new.bn1(new.conv1(x))
        a2, b2 = model.layer1[0].bn1(model.layer1[0].conv1(a.relu())), new.layer1[0].conv1(b.relu())
    assert (a - b).square().mean() < 0.08 * a.var()
    assert torch.corrcoef(torch.stack([a2.flatten(), b2.flatten()]))[0, 1] > 0.9


def test_scales_follow_trained_weights_and_biases():
    torch.manual_seed(3)
    result, x = normfree(trained(SmallResNet()), skip_gain=1.0), torch.randn(16, 3, 48, 48)
    seen = {}
    for name, conv in convolutions(result.model).items():
        conv.register_forward_pre_hook(
            lambda m, args, name=name: seen.update({name: args[0].var((0, 2, 3)).mean().item()})
        )
    result.model(x)
    for name, conv in convolutions(result.model).items():
        assert conv.scale**-2 == pytest.approx(seen[name], rel=0.35), name
    assert signal_propagation(result.model, x)["var"][1:].tolist() == pytest.approx(
        result.blocks.variance.tolist(), rel=0.35
    )


def test_the_skip_gain_replaces_a_norm_weight_of_zeros():
    model = SqueezeNet()  # the last norm of each block starts at zero
    result = normfree(model)
    assert torch.equal(result.model[1][0].conv3.gain, torch.ones(64)) and not result.undone
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        h = F.silu(result.model[0][0](x))
        block = result.model[1][0]
        assert torch.equal(block(h), F.silu(block.downsample(h)))  # with skip gain 0 only the shortcut remains


def test_the_loss_of_a_norms_weight_and_bias_is_reported():
    result = normfree(trained(PreActivationNet()))
    lost = [s for s in result.undone if "lost" in s]
    assert len(lost) == 4 and "'blocks.0.bn1'" in lost[0]  # bn2 follows conv1, so its weight and bias are kept
    assert torch.equal(result.model.conv.gain, torch.ones(32))
    assert not normfree(PreActivationNet()).undone


def test_precision_modes_and_frozen_parameters_are_kept():
    model = SmallResNet().to(torch.bfloat16).eval()
    model.layer1.requires_grad_(False)
    model.layer2.train()
    new = normfree(model).model
    assert {p.dtype for p in new.parameters()} == {torch.bfloat16}
    assert new(torch.randn(2, 3, 16, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert not new.layer1[0].conv1.weight.requires_grad and not new.layer1[0].conv1.gain.requires_grad
    assert new.layer2[0].conv1.gain.requires_grad
    assert not new.training and new.layer2.training and not new.layer1[0].training
    assert normfree(SqueezeNet().train()).model[1][0].drop_path.training


def test_the_original_does_not_change():
    model = trained(SmallResNet())
    model.fc.bias.grad = torch.ones(10)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    normfree(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and model.layer1[0].relu.inplace and model.fc.bias.grad.sum() == 10
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert {type(m) for m in model.modules()} == {type(m) for m in SmallResNet().modules()}


def test_the_input_and_buffers_do_not_change():
    class Counts(SmallResNet):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            return super().forward(x.mul_(2))

    x = torch.randn(2, 3, 16, 16)
    before = x.clone()
    assert normfree(Counts(), x).model.calls == 0 and torch.equal(x, before)


# ---- the result is an ordinary module


@pytest.mark.parametrize("build", [SmallResNet, SqueezeNet, PreActivationNet], ids=lambda b: b.__name__)
def test_a_converted_network_can_be_saved_copied_exported_and_folded(build, tmp_path):
    model, x = build(), torch.randn(2, 3, 32, 32)
    new = normfree(model, skip_gain=0.5).model.eval()
    out = new(x)
    torch.save(new.state_dict(), tmp_path / "state.pt")
    again = normfree(model).model.eval()
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    for other in (again, copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        assert torch.equal(other(x), out)
    program = torch.export.export(new, (x,))
    torch.testing.assert_close(program.module()(x), out)
    plain = fold(new)
    assert not convolutions(plain) and convolutions(new)
    torch.testing.assert_close(plain(x), out, rtol=1e-4, atol=1e-5)


def test_standardising_once_per_step_gives_the_same_gradients():
    model, x = normfree(SmallResNet(), skip_gain=1.0).model, torch.randn(4, 3, 16, 16)
    model(x).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with standardized_once(model):
        for part in x.split(2):
            model(part).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-3, atol=1e-4)


def test_gains_and_biases_are_not_decayed_and_the_classifier_is_not_clipped():
    groups = groups_table(param_groups(normfree(SqueezeNet()).model, weight_decay=1e-4)).set_index("parameter")
    vectors = [n for n in groups.index if n.endswith(("gain", "bias"))]
    assert any("skip_gain" in n for n in vectors) and len(vectors) > 30
    assert (groups.loc[vectors, "weight_decay"] == 0).all() and (groups.loc[vectors, "clip"] == "0.01").all()
    assert groups.loc["3.2.weight", "clip"] == "exempt"
    assert (groups.drop(index=vectors)["weight_decay"] == 1e-4).all()


def test_the_report_lists_replaced_and_left_modules():
    result = normfree(SqueezeNet())
    rows = result.report.set_index("path")
    assert rows.loc["0.0", "became"] == "StandardizedConv2d" and rows.loc["0.0", "scale"] == pytest.approx(1.0)
    assert rows.loc["1.0.bn1", "became"] == "Identity" and "1.0.conv1" in rows.loc["1.0.bn1", "note"]
    assert rows.loc["1.0.se", "became"] == "SqueezeExcite + BranchGain"
    assert "pooled" in rows.loc["1.0.se.reduce", "note"] and rows.loc["3.2", "was"] == "Linear"
    assert "15 StandardizedConv2d" in str(result) and "8 Conv2d, reads a map pooled" in str(result)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in result.model.modules())


# ---- other shapes of network


def test_the_argument_blocks_chooses_the_block_ends():
    both = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), PreActivationBlock(16, nn.ReLU()), BasicBlock(16, 16))
    model = nn.Sequential(both, nn.Flatten(), nn.LazyLinear(2))
    x = torch.randn(2, 3, 16, 16)
    with pytest.raises(WorkbenchError, match="lazy"):
        normfree(model)
    model(x)
    assert normfree(model, x).blocks.path.tolist() == ["0.2", "0.3"]
    assert normfree(model, x, blocks=["0.3"]).blocks.path.tolist() == ["0.3"]
    none = normfree(model, x, blocks=[])
    assert len(none.blocks) == 0 and not ends(none.model)
    variances = output_variances(none.model, torch.randn(16, 3, 16, 16))  # sums outside blocks count
    assert all(v == pytest.approx(1.0, abs=0.25) for v in variances.values()), variances


def test_the_argument_blocks_can_name_a_decoders_addition():
    assert normfree(UNet(up="upsampled", skip="added"), blocks=[""]).blocks.path.tolist() == [""]


def test_adding_the_input_to_the_networks_output_is_no_block():
    class Denoiser(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.out = double_conv(3, 16), nn.Conv2d(16, 3, 3, 1, 1)

        def forward(self, x):
            return x + self.out(self.body(x))

    result = normfree(Denoiser())
    assert len(result.blocks) == 0 and type(result.model.out) is nn.Conv2d and not result.undone


def test_a_branch_that_ends_in_code_gets_a_gain_if_only_factors_follow_its_convolution():
    """Before an activation a gain could not learn from 0. Such a branch gets no gain, which is reported."""

    class Block(nn.Module):
        def __init__(self, activated: bool):
            super().__init__()
            self.conv, self.bn, self.activated = nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16), activated

        def forward(self, x):
            out = self.bn(self.conv(x))
            return x + (F.relu(out) if self.activated else 0.5 * out)

    def network(activated):
        return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), Block(activated), nn.Conv2d(16, 2, 1))

    class Normed(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    branch = Normed(nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(), nn.BatchNorm2d(16))
    nn.init.zeros_(branch[0].bias)
    normed = normfree(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), branch, nn.Conv2d(16, 2, 1)))
    assert normed.blocks.gain.tolist() == ["2.2"] and isinstance(normed.model[2][2], BranchGain)
    assert normed.model[2][2].scale == pytest.approx(0.2 * gamma(F.relu), rel=1e-3)
    assert normed.blocks.variance[0] == pytest.approx(1.04, rel=0.01)

    halved = normfree(network(False))
    assert halved.blocks.gain.tolist() == ["2.conv"] and halved.blocks.scale[0] == pytest.approx(0.4, rel=0.01)
    after_code = normfree(network(True))
    assert len(after_code.blocks) == 0 and "'2'" in after_code.undone[0] and "nn.Identity" in after_code.undone[0]


def test_a_trunk_that_is_normalised_and_added_is_divided_by_its_deviation():
    """In RepVGG and MobileOne no layer after the sum can contain beta. Without beta the trunk would grow."""

    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.identity, self.convs = nn.BatchNorm2d(32), nn.ModuleList(nn.Conv2d(32, 32, 3, 1, 1) for _ in range(2))
            self.norms = nn.ModuleList(nn.BatchNorm2d(32) for _ in range(2))

        def forward(self, x):
            out = self.identity(x)
            for conv, norm in zip(self.convs, self.norms, strict=True):
                out += norm(conv(x))
            return out

    stem = nn.Conv2d(3, 32, 3, 1, 1), nn.BatchNorm2d(32)
    model = nn.Sequential(*stem, *(Parallel() for _ in range(4)), nn.Flatten(), nn.Linear(32 * 64 * 64, 2))
    result = normfree(model, blocks=[])
    assert [m.identity.scale for m in result.model[2:6]] == pytest.approx([1.0] + [3**-0.5] * 3, rel=0.02)
    h, x = [], torch.randn(4, 3, 64, 64)
    for m in result.model[2:6]:
        m.register_forward_hook(lambda m, args, out: h.append(out.var((0, 2, 3)).mean().item()))
    result.model(x)
    assert h == pytest.approx([3.0] * 4, rel=0.12)


def test_gates_that_are_expanded_over_the_map_are_no_upsampling():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.gate = nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.Conv1d(1, 1, 3, 1, 1)

        def forward(self, x):
            out = self.bn(self.conv(x))
            gates = self.gate(out.mean((2, 3))[:, None]).transpose(1, 2)[..., None].sigmoid()
            return x + out * gates.expand_as(out)

    result = normfree(nn.Sequential(nn.Conv2d(3, 16, 3), Gate(), nn.BatchNorm2d(16), nn.Conv2d(16, 2, 1)))
    assert result.blocks.path.tolist() == ["1"] and result.blocks.scale[0] == pytest.approx(0.4, rel=0.3)
    assert "pooled" in result.report.set_index("path").loc["1.gate", "note"]


def test_a_branch_that_starts_at_zero_gets_no_gain():
    class Scaled(nn.Module):  # like SkipInit and LayerScale
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.gain = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x + self.gain * self.bn(self.conv(x))

    result = normfree(nn.Sequential(nn.Conv2d(3, 8, 3), Scaled(), nn.Conv2d(8, 2, 1)))
    assert len(result.blocks) == 0 and result.model[1].gain.item() == 0 and result.undone == []


def test_biases_of_convolutions_count_if_no_norm_follows():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    nn.init.constant_(model[0].bias, 2.0)
    assert normfree(model).model[2].scale == pytest.approx(gamma(lambda z: F.relu(z + 2)), rel=1e-3)
    behind = nn.Sequential(model[0], nn.BatchNorm2d(8), *model[1:])
    assert normfree(behind).model[3].scale == pytest.approx(gamma(F.relu), rel=1e-3)  # BatchNorm removes the bias


def test_a_module_that_runs_twice_is_reported():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.bn = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)
            self.fc = nn.Linear(16, 2)

        def forward(self, x):
            h = self.bn(self.conv(self.stem(x)))
            return self.fc(self.bn(self.conv(F.relu(h))).mean((2, 3)))

    result = normfree(Twice())
    assert len(result.undone) == 1 and "'conv'" in result.undone[0] and "2 times" in result.undone[0]
    assert result.model.conv.scale == pytest.approx(1.0, rel=1e-3)


def test_modules_that_the_input_does_not_reach_are_reported():
    class Auxiliary(SmallResNet):
        def __init__(self):
            super().__init__()
            self.aux = double_conv(16, 8)

        def forward(self, x):
            out = super().forward(x)
            return (out, self.aux(self.conv1(x))) if self.training else out

    model = Auxiliary()
    in_training = normfree(model.train())
    assert not in_training.undone and isinstance(in_training.model.aux[0], Standardized)
    result = normfree(model.eval())
    assert len([s for s in result.undone if "aux" in s]) == 4
    assert not any(isinstance(m, nn.BatchNorm2d) for m in result.model.modules())


def test_shared_convolutions_stay_shared_and_activations_inside_norms_stay():
    class NormAct(nn.BatchNorm2d):
        def __init__(self, channels):
            super().__init__(channels)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.act(super().forward(x))

    shared = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), NormAct(8), shared, NormAct(8), shared, NormAct(8), nn.Conv2d(8, 2, 1))
    new = normfree(model).model
    assert new[2] is new[4] and isinstance(new[1], nn.ReLU)
    assert new[4].scale == pytest.approx(gamma(F.relu), rel=1e-3)


def test_other_norms_and_linear_layers_stay():
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8), nn.Flatten(), nn.Linear(8 * 58 * 58, 4), nn.BatchNorm1d(4)),
    )
    result = normfree(without_biases(model))
    rows = result.report.set_index("path")
    assert rows.loc["4", "became"] == "GroupNorm" and "each sample" in rows.loc["7", "note"]
    assert result.model[6].scale == pytest.approx(gamma(F.relu), rel=1e-3)
    assert len(result.undone) == 1 and "'9'" in result.undone[0] and "not standardised" in result.undone[0]


@pytest.mark.parametrize("dims", [1, 3])
def test_networks_of_signals_and_volumes_are_converted(dims):
    conv, norm = ((nn.Conv1d, nn.BatchNorm1d), None, (nn.Conv3d, nn.BatchNorm3d))[dims - 1]
    model = nn.Sequential(conv(2, 8, 3), norm(8), nn.ReLU(), conv(8, 8, 3), norm(8), nn.ReLU(), conv(8, 1, 1))
    new = normfree(model, torch.randn(2, 2, *[12] * dims)).model
    assert new[3].scale == pytest.approx(gamma(F.relu), rel=1e-3) and type(new[6]) is conv


def test_networks_with_dropout_in_code_and_several_arguments_are_converted():
    class Conditioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
            self.time, self.conv2, self.fc = nn.Linear(4, 16), nn.Conv2d(16, 16, 3), nn.Linear(16, 2)

        def forward(self, x, t, scale=1.0):
            h = F.dropout(F.relu(self.bn1(self.conv1(x))), 0.5, self.training)
            return self.fc(self.conv2(h * scale + self.time(t)[:, :, None, None]).mean((2, 3)))

    model = Conditioned().train()
    for p in model.time.parameters():
        nn.init.zeros_(p)
    x, t = torch.randn(2, 3, 8, 8), torch.randn(2, 4)
    assert normfree(model, (x, t)).model.conv2.scale == pytest.approx(gamma(F.relu), rel=1e-3)
    assert normfree(model, (x, t, 2.0)).model.conv2.scale == pytest.approx(gamma(F.relu) / 2, rel=1e-3)


def test_our_batchnorm_networks_are_converted():
    result = normfree(create_model("resnet_tiny", 10, stochastic_depth=0.0), skip_gain=1.0)
    assert len(result.blocks) == len(result.model.blocks)
    table = signal_propagation(result.model, torch.randn(8, 3, 64, 64))
    assert table["var"][1:].tolist() == pytest.approx(result.blocks.variance.tolist(), rel=0.2)


# ---- errors


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(F.batch_norm(self.bn(self.conv(x)), None, None, training=True).mean((2, 3)))


@pytest.mark.parametrize(
    ("build", "arguments", "words"),
    [
        (SmallViT, {}, "SmallViT.*no BatchNorm"),
        (lambda: normfree(SmallResNet()).model, {}, "SmallResNet.*no BatchNorm"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), {}, "Sequential.*no convolution"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4)), {}, "Sequential.*lazy"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 99), nn.BatchNorm2d(4)), {}, r"\(2, 3, 64, 64\).*normfree\(model, x\)"),
        (SmallResNet, {"x": torch.randn(1, 5, 8, 8)}, r"shape \(1, 5, 8, 8\)"),
        (SmallResNet, {"alpha": 0.0}, r"`alpha`.*0\.0"),
        (SmallResNet, {"blocks": ["layer3"]}, r"'layer3'.*'layer\d"),
        (SmallResNet, {"variances": {"layer1.7": 1.0}}, r"block 'layer1\.7'"),
        (SmallResNet, {"variances": {"layer1.0": 0.0}}, r"'layer1\.0'.*0\.0"),
        (Functional, {}, r"'Functional'.*batch.*nn\.BatchNorm2d"),
    ],
)
def test_errors_name_the_network_or_the_argument(build, arguments, words):
    with pytest.raises(WorkbenchError, match=words):
        normfree(build(), **arguments)


# ---- learning, compared with the BatchNorm original


def digits() -> tuple:
    """Load mnist5k at 14 pixels: (train, val), each with images and labels."""
    data = load_dataset("mnist5k")
    return tuple((F.avg_pool2d(s.images / 255 - 0.13, 2) / 0.27, s.labels) for s in (data.train, data.val))


def accuracy(model: nn.Module, splits: tuple, *, lr: float, steps: int, seed: int) -> float:
    """Train with SGD, and with AGC for networks without BatchNorm. Return per cent of the validation split."""
    (images, labels), (val_images, val_labels) = splits
    optimizer = torch.optim.SGD(param_groups(model, clip=0.04), lr=lr, momentum=0.9, nesterov=True)
    schedule = warmup_cosine(optimizer, 0.1 * steps, steps)
    if convolutions(model):
        AGC(optimizer)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(labels), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return (model.eval()(val_images).argmax(1) == val_labels).float().mean().item() * 100


def small_resnet(kind: str, seed: int, x: torch.Tensor) -> nn.Module:
    torch.manual_seed(seed)
    model = SmallResNet(1)
    return normfree(model, x, skip_gain=1.0).model if kind == "normalizer-free" else model


def test_a_converted_network_learns_digits():
    splits = digits()
    assert accuracy(small_resnet("normalizer-free", 0, splits[0][0][:2]), splits, lr=0.4, steps=100, seed=0) > 75


@pytest.mark.slow
def test_a_converted_network_is_within_a_point_of_its_batch_norm_original():
    """Both train 600 steps at the best of four rates by seed 0. The result is the mean of three seeds."""
    splits, mean = digits(), {}
    for kind in ("BatchNorm", "normalizer-free"):

        def run(lr, seed, kind=kind):
            model = small_resnet(kind, seed, splits[0][0][:2])
            return accuracy(model, splits, lr=lr, steps=600, seed=seed)

        first = {lr: run(lr, 0) for lr in (0.1, 0.2, 0.4, 0.8)}
        best = max(first, key=first.get)
        mean[kind] = (first[best] + run(best, 1) + run(best, 2)) / 3
        print(kind, first, mean[kind])
    assert mean["normalizer-free"] > mean["BatchNorm"] - 1.0


@pytest.mark.parametrize("up", ["transposed", pytest.param("upsampled", marks=pytest.mark.slow)])
def test_a_converted_u_net_finds_digits_in_noise_like_its_original(up):
    """Both train 100 steps of 16 images of 28 pixels, under noise of deviation 1. Loss and overlap are on others.

    At this rate the output layer needs clipping, too. Exempt from it, one seed of three finds nothing.
    """
    data, loss, overlap = load_dataset("mnist5k"), {}, {}
    images, others = data.train.images / 255, data.val.images[:200] / 255
    for kind in ("BatchNorm", "normalizer-free"):
        torch.manual_seed(0)
        model = UNet(8, up)
        model = normfree(model, images[:2]).model if kind == "normalizer-free" else model
        optimizer = torch.optim.SGD(
            param_groups(model, clip=0.08, overrides={"out.*": {"clip": 0.08}}), lr=0.8, momentum=0.9, nesterov=True
        )
        if kind == "normalizer-free":
            AGC(optimizer)
        generator = torch.Generator().manual_seed(0)
        schedule = warmup_cosine(optimizer, 10, 100)
        for _ in range(100):
            batch = images[torch.randint(len(images), (16,), generator=generator)]
            optimizer.zero_grad()
            noisy = batch + torch.randn(batch.shape, generator=generator)
            F.binary_cross_entropy_with_logits(model(noisy), (batch > 0.5).float()).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            logits, mask = model.eval()(others + torch.randn(others.shape, generator=generator)), others > 0.5
        loss[kind] = F.binary_cross_entropy_with_logits(logits, mask.float()).item()
        overlap[kind] = (((logits > 0) & mask).sum() / ((logits > 0) | mask).sum()).item()
    assert loss["normalizer-free"] < 1.4 * loss["BatchNorm"]
    print(loss, overlap)
    assert overlap["normalizer-free"] > 0.75 * overlap["BatchNorm"] > 0.4


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("resnet18", 8), ("seresnet50", 16), ("regnety_002", 13), ("resnetv2_50", 16), ("mobilenetv3_small_100", 6)],
)
def test_networks_of_timm_are_converted(name, blocks):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    result = normfree(timm.create_model(name), skip_gain=1.0)
    assert len(result.blocks) == blocks and not result.undone
    table = signal_propagation(result.model.eval(), torch.randn(4, 3, 128, 128))
    first = slice(0, 3)  # deeper maps are small, and mostly border
    assert table["var"][1:].tolist()[first] == pytest.approx(result.blocks.variance.tolist()[first], rel=0.3)
