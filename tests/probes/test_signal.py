"""Signal propagation.

Evidence: a known block by hand, the published table of measurements, and hooks on other networks. The model stays
unchanged.
"""

import copy

import pytest
import torch
from support.foreign import Gated, SmallResNet, SmallViT
from support.unchanged import unchanged
from torch import nn

from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.models.layers import Join
from workbench.probes import signal, signal_propagation
from workbench.probes.moments import kurtosis, moments


class Known(nn.Module):
    """Block with out = x + 3 and branch = 2 x, whose statistics can be computed by hand."""

    alpha, beta, stage, is_transition = 1.0, 1.0, 0, False

    def __init__(self):
        super().__init__()
        self.join = Join(0.0)

    def residual(self, x):
        return 2 * x

    def forward(self, x):
        self.join(x, self.residual(x))
        return x + 3


def test_statistics_by_hand():
    x = torch.tensor([[1.0, 3.0], [10.0, 10.0]]).view(1, 2, 1, 2)  # means 2 and 10, biased variances 1 and 0
    table = signal_propagation(nn.Sequential(Known()), x)
    assert table[["mean_sq", "var"]].values.tolist() == [[(4 + 100) / 2, 0.5], [(25 + 169) / 2, 0.5]]
    assert table.residual_var[1] == 2.0
    assert table.residual_var.isna().tolist() == [True, False]
    assert table.block.tolist() == [0, 1]


# Measured with the authors' code on NF-ResNet-50, skip gain 1, N(0, 1) images 8 x 96 x 96 x 3, first seed.
PUBLISHED_VAR = [0.36, 1.05, 1.09, 1.13, 1.04, 1.08, 1.12, 1.15, 1.03, 1.07, 1.10, 1.14, 1.17, 1.20, 0.96, 0.99, 1.01]
PUBLISHED_BN_VAR = [0.28, 0.57, 0.83, 1.11, 0.54, 0.80, 1.07, 1.33, 0.53]


def test_nf_resnet_reproduces_the_published_staircase():
    table = signal_propagation(create_model("nf_resnet50", 10, skip_gain=1.0), torch.randn(8, 3, 96, 96))
    assert table["var"].tolist() == pytest.approx(PUBLISHED_VAR, rel=0.09)
    assert table.residual_var[1] == pytest.approx(0.98, rel=0.05)
    assert table.residual_var.iloc[-1] == pytest.approx(0.66, rel=0.12)


def test_batchnorm_resnet_grows_as_published():
    table = signal_propagation(create_model("resnet50", 10), torch.randn(8, 3, 96, 96))
    assert table["var"][:9].tolist() == pytest.approx(PUBLISHED_BN_VAR, rel=0.08)
    assert table["var"][13:].tolist() == pytest.approx([1.87, 0.53, 0.79, 1.05], rel=0.08)
    assert table.residual_var[1:].between(0.24, 0.29).all()


def test_average_pools_lose_white_noise_in_an_nfnet():
    table = signal_propagation(create_model("nfnet_f0", 10, skip_gain=1.0), torch.randn(4, 3, 96, 96))
    published = [0.92, 0.95, 0.26, 0.27, 0.06]
    assert table["var"][:5].tolist() == pytest.approx(published, rel=0.12)
    assert table["var"][10:].tolist() == pytest.approx([0.01] * 3, rel=0.5)  # the published values have one digit
    assert table.residual_var[1:6].tolist() == pytest.approx([0.86, 0.82, 0.12, 0.10, 0.013], rel=0.2)
    assert table.residual_var.iloc[-1] == pytest.approx(0.001, rel=0.5)


def test_nf_regnet_falls_as_published():
    table = signal_propagation(create_model("nf_regnet_b0", 10, skip_gain=1.0), torch.randn(8, 3, 96, 96))
    stages = [0, 1, 2, 5, 16]  # the stem, after each transition block, and the last block
    assert table["var"][stages].tolist() == pytest.approx([0.99, 0.28, 0.07, 0.015, 0.003], rel=0.2)
    assert table.residual_var[[1, 2, 3]].tolist() == pytest.approx([0.89, 0.17, 0.03], rel=0.2)
    assert 0.0005 < table.residual_var.iloc[-1] < 0.0015


@pytest.mark.parametrize("name", ["nf_resnet_tiny", "resnet_tiny"])
def test_the_model_stays_unchanged(name):
    model = create_model(name, 10, stochastic_depth=0.5).train()
    x = torch.randn(4, 3, 16, 16)
    with unchanged(model):
        signal_propagation(model, x)


def test_a_failing_forward_leaves_no_hooks():
    model = create_model("nf_resnet_tiny", 10)
    with pytest.raises(RuntimeError):
        signal_propagation(model, torch.randn(4, 5, 16, 16))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_model_without_blocks_and_layers_is_refused_with_an_example_of_blocks():
    with pytest.raises(WorkbenchError, match=r"Sequential .* blocks=\['0'\]"):
        signal_propagation(nn.Sequential(nn.ReLU()), torch.randn(1, 3, 8, 8))


# ---- networks of other libraries


def test_blocks_of_a_foreign_resnet_are_found_and_measured():
    """The reference comes from hooks on the modules. The addition is in place, before the last activation."""
    model, x = SmallResNet().train(), torch.randn(4, 3, 16, 16)
    seen = {}
    blocks = [*model.layer1, *model.layer2]
    hooks = [model.layer1.register_forward_pre_hook(lambda m, args: seen.update(stem=args[0].clone()))]
    for i, block in enumerate(blocks):
        hooks.append(block.bn2.register_forward_hook(lambda m, a, out, i=i: seen.update({("branch", i): out.clone()})))
        hooks.append(
            block.relu.register_forward_pre_hook(lambda m, args, i=i: seen.update({("end", i): args[0].clone()}))
        )
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    state = copy.deepcopy(model.state_dict())
    table = signal_propagation(model, x)
    assert table.path.tolist() == ["", "layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    assert table.stage.tolist() == [-1, 0, 0, 1, 1]

    def var(t):
        return torch.var(t.double(), dim=(0, 2, 3), correction=0).mean().item()

    assert table["var"][0] == pytest.approx(var(seen["stem"]), rel=1e-5)
    for i in range(4):
        assert table["var"][i + 1] == pytest.approx(var(seen["end", i]), rel=1e-5)
        assert table.residual_var[i + 1] == pytest.approx(var(seen["branch", i]), rel=1e-5)
    assert model.training and all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_blocks_of_token_networks_gates_and_plain_sequences_are_found():
    table = signal_propagation(SmallViT(), torch.randn(2, 3, 16, 16))
    assert table.path.tolist() == ["", "blocks.0", "blocks.0", "blocks.1", "blocks.1"]
    table = signal_propagation(nn.Sequential(nn.Conv2d(3, 8, 3), Gated(8), Gated(8)), torch.randn(2, 3, 9, 9))
    assert table.path.tolist() == ["", "1", "2"] and table.residual_var[1:].gt(0).all()


def test_watched_additions_agree_with_library_blocks(monkeypatch):
    """With skip gain 1 and alpha 0.2, a watched branch is 0.2 times the library's branch. The trunk is the same."""
    model, x = create_model("nf_resnet_tiny", 10, skip_gain=1.0).eval(), torch.randn(4, 3, 32, 32)
    ours = signal_propagation(model, x)
    monkeypatch.setattr(signal, "library_blocks", lambda model: [])
    watched = signal_propagation(model, x)
    assert watched["var"][1:].tolist() == pytest.approx(ours["var"][1:].tolist(), rel=1e-5)
    assert watched.residual_var[1:].tolist() == pytest.approx((0.04 * ours.residual_var[1:]).tolist(), rel=1e-5)


def test_the_networks_input_stays_unchanged():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x.mul_(2)
            return x + self.conv(x)

    x = torch.randn(1, 3, 4, 4)
    before = x.clone()
    signal_propagation(Writes(), x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("name", "ends"), [("resnet18", 8), ("regnety_002", 13), ("convnext_atto", 12), ("vit_tiny_patch16_224", 24)]
)
def test_blocks_of_timms_networks_are_found(name, ends):
    timm = pytest.importorskip("timm")
    size = 224 if "vit" in name else 64
    table = signal_propagation(timm.create_model(name).eval(), torch.randn(2, 3, size, size))
    assert len(table) == ends + 1 and table["var"].gt(0).all()


@pytest.mark.parametrize("mean", [0.0, 1.0, 9.0, 30.0, 1000.0])
def test_statistics_are_accurate_far_from_zero(mean):
    """Sums and norms, or the variance kernel for large means, agree with double precision."""
    x = torch.randn(4, 3, 16, 16) + mean * torch.tensor([1.0, -1.0, 0.5]).view(-1, 1, 1)
    gate = torch.rand(4, 3, 1, 1)
    for given in (None, gate):
        measured = moments(x, given)
        product = x.double() if given is None else given.double() * x.double()
        var, centre = torch.var_mean(product, dim=(0, 2, 3), correction=0)
        assert measured["var"] == pytest.approx(var.mean().item(), rel=3e-5)
        assert measured["mean_sq"] == pytest.approx(centre.square().mean().item(), rel=3e-5)


# ---- optional columns


def test_kurtosis_of_known_distributions():
    torch.manual_seed(0)
    normal = torch.randn(64, 3, 32, 32)
    assert kurtosis(normal) == pytest.approx(3.0, abs=0.1)
    signs = (
        normal.sign() * torch.tensor([1.0, 5.0, 0.0]).view(3, 1, 1) + 7.0
    )  # two channels with two values each, and a constant one
    assert kurtosis(signs) == pytest.approx(1.0, abs=0.01)


class Scaled(nn.Module):
    """Block h + factor * conv(h) with a 1x1 convolution that permutes channels, so the gradient is known."""

    def __init__(self, factor: float, by: int = 1):
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(4, 4, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(4).roll(by, 0)[:, :, None, None])

    def forward(self, h):
        return h + self.factor * self.conv(h)


def test_the_gradient_grows_backward_as_the_adjoint_predicts():
    """(I + c P)^T, with another permutation P in each block, multiplies the variance of white noise by 1 + c^2."""
    model, x = nn.Sequential(Scaled(1.0), Scaled(2.0, 1), Scaled(0.5, 2)), torch.randn(8, 4, 16, 16)
    table = signal_propagation(model, x, backward=True)
    assert table.grad_var[1:].tolist() == pytest.approx([5 * 1.25, 1.25, 1.0], rel=0.1)
    assert all(p.grad is None for p in model.parameters()) and not x.requires_grad


def test_the_gradient_of_a_loss_equals_that_of_autograd():
    model, x = create_model("nf_resnet_tiny", 10, skip_gain=1.0), torch.randn(4, 3, 32, 32)
    maps = []
    hooks = [b.register_forward_hook(lambda m, a, out: maps.append(out)) for b in model.blocks]
    hooks.append(model.blocks[0].register_forward_pre_hook(lambda m, args: maps.append(args[0])))
    leaf = x.clone().requires_grad_()
    grads = torch.autograd.grad(model(leaf).square().sum(), maps)
    for hook in hooks:
        hook.remove()
    table = signal_propagation(model, x, backward=lambda out: out.square().sum())
    by_hand = [torch.var(g.double(), dim=(0, 2, 3), correction=0).mean().item() for g in grads]
    assert table.grad_var.tolist() == pytest.approx(by_hand, rel=1e-4)


def test_the_gradient_at_a_foreign_trunk_is_taken_before_its_activation():
    """The network writes into the trunk in place (out += identity, then relu). The reference comes from hooks."""
    model, x = SmallResNet().eval(), torch.randn(4, 3, 16, 16)
    table = signal_propagation(model, x, backward=lambda out: out.square().sum())
    seen = []
    hooks = [
        b.relu.register_forward_pre_hook(lambda m, a: a[0].register_hook(lambda g: seen.append(g.clone())) and None)
        for b in [*model.layer1, *model.layer2]
    ]
    model(x.clone().requires_grad_()).square().sum().backward()
    for hook in hooks:
        hook.remove()
    # Each block calls its relu twice. Gradients come from the last block first, and the first of two is the trunk's.
    trunk = [torch.var(g.double(), dim=(0, 2, 3), correction=0).mean().item() for g in seen[::2]][::-1]
    assert table.grad_var[1:].tolist() == pytest.approx(trunk, rel=1e-4)


def test_a_detached_trunk_is_refused():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return (x + self.conv(x)).detach()

    with pytest.raises(WorkbenchError, match=r"no gradient comes back|does not depend"):
        signal_propagation(Detached(), torch.randn(2, 3, 4, 4), backward=torch.sum)


def test_dead_units_are_counted():
    """A bias of -100 before a ReLU kills 3 of 8 channels. Gray pixels and pooled gates are not dead units."""

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv0, self.conv1 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.gate = nn.Conv2d(8, 8, 1)

        def forward(self, h):
            out = self.conv1(torch.relu(self.conv0(h)))
            return h + out * torch.relu(self.gate(out.mean((2, 3), keepdim=True)) - 100)

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Branch(), Branch())
    with torch.no_grad():
        model[2].conv0.bias[:3] = -100
    table = signal_propagation(model, torch.zeros(4, 3, 16, 16).add_(torch.randn(4, 1, 1, 1)), dead=True)
    x = torch.randn(4, 3, 16, 16)
    x[:, 1] = 0  # an empty image channel is no dead unit
    table = signal_propagation(model, x, dead=True)
    assert table.dead.tolist() == [0.0, 0.0, 3 / 8]


def test_the_peak_is_the_largest_value():
    table = signal_propagation(
        nn.Sequential(Scaled(1.0)), torch.tensor([[[[-3.0]], [[1.0]], [[0.0]], [[0.0]]]]), peak=True
    )
    assert table.peak[1] == 3.0  # (-3, 1, 0, 0) + (0, -3, 1, 0)


# ---- blocks by name


def test_blocks_can_be_named_in_a_network_without_additions():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3)), nn.Conv2d(8, 4, 3, 2))
    x = torch.randn(2, 3, 12, 12)
    table = signal_propagation(model, x, blocks=["1", "2"], backward=True)
    assert table.path.tolist() == ["", "1", "2"] and table.stage.tolist() == [-1, 0, 1]
    assert table.residual_var.isna().all()
    with torch.no_grad():
        expected = torch.var(model[0](x).double(), dim=(0, 2, 3), correction=0).mean().item()
    assert table["var"][0] == pytest.approx(expected, rel=1e-5)
    assert table.grad_var.gt(0).all()


def test_the_branch_of_a_named_block_is_its_last_addition():
    model, x = SmallResNet().eval(), torch.randn(4, 3, 16, 16)
    by_name = signal_propagation(model, x, blocks=["layer1", "layer2"])
    by_addition = signal_propagation(model, x)
    assert by_name.residual_var[1:].tolist() == pytest.approx(by_addition.residual_var[[2, 4]].tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("blocks", "offending"),
    [
        (["layer3"], "SmallResNet.*'layer3'.*'layer"),
        (["fc"], r"`blocks` .* fc .*shape \(2, 10\)"),
        ("layer1", "`blocks` .* 'layer1'"),
    ],
)
def test_bad_names_of_blocks_are_refused(blocks, offending):
    with pytest.raises(WorkbenchError, match=offending):
        signal_propagation(SmallResNet(), torch.randn(2, 3, 16, 16), blocks=blocks)
