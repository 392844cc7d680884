"""Pre-flight.

Evidence: typical mistakes, planted one by one, are reported with their cause. Sound networks of every kind pass. The
rules are checked on small tables, and the model stays unchanged.
"""

import math

import pandas as pd
import pytest
import torch
from support.foreign import SmallResNet, SmallViT, TransformerBlock
from support.unchanged import unchanged
from torch import nn

from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.models.activations import ACTIVATIONS
from workbench.normfree import normfree
from workbench.normfree.standardized_convs import BranchGain
from workbench.probes import preflight
from workbench.probes.rules import broken_rules, in_a_run

RELU = ACTIVATIONS["relu"][1]


def noise(n=8, channels=3, size=64):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(3))


# ---- sound networks

SOUND = {
    "NF-ResNet": ("nf_resnet50", {"width": 1}, 64),
    "NF-ResNet, deep": ("nf_resnet101", {"width": 1}, 64),
    "NF-ResNet with gates": ("nf_resnet50", {"width": 1, "se_ratio": 0.5}, 64),
    "NF-ResNet, alpha 1": ("nf_resnet50", {"width": 1, "alpha": 1.0}, 64),
    "NF-ResNet, 32 px": ("nf_resnet26_cifar", {}, 32),
    "NF-ResNet, tanh": ("nf_resnet26_cifar", {"activation": "tanh"}, 32),
    "NF-ResNet, silu": ("nf_resnet26_cifar", {"activation": "silu"}, 32),
    "NFNet": ("nfnet_f0", {"width": 0.25, "group_size": 32}, 64),
    "NFNet, 32 px": ("nfnet_micro", {}, 32),
    "NF-RegNet": ("nf_regnet_b0", {}, 64),
    "timm's NF-RegNet": ("timm_nf_regnet_b1", {}, 64),
    "BatchNorm": ("resnet50", {}, 64),
    "BatchNorm, deep": ("resnet101", {"width": 1, "he_init": True}, 64),
    "BatchNorm, 32 px": ("resnet26_cifar", {}, 32),
    "FixUp": ("fixup_resnet50", {"width": 1}, 64),
    "SkipInit": ("skipinit_resnet50", {"width": 1}, 64),
}


@pytest.mark.parametrize("case", SOUND)
def test_a_sound_network_passes(case):
    name, arguments, size = SOUND[case]
    report = preflight(create_model(name, 10, **arguments), noise(size=size))
    assert report.ok, str(report)
    assert "is sound" in str(report)


@pytest.mark.parametrize(("model", "size"), [(SmallResNet, 32), (SmallViT, 16)])
def test_a_sound_network_of_another_library_passes(model, size):
    report = preflight(model(), noise(16, size=size))
    assert report.ok and set(report.table.verdict[1:]) == {"sound"}


@pytest.mark.slow
@pytest.mark.parametrize("case", SOUND)
def test_a_sound_network_passes_with_every_seed(case):
    name, arguments, size = SOUND[case]
    for seed in range(1, 9):
        torch.manual_seed(seed)
        report = preflight(create_model(name, 10, **arguments), torch.randn(8, 3, size, size))
        assert report.ok, str(report)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "resnetv2_50", "regnety_002", "convnext_atto", "efficientnet_b0", "dm_nfnet_f0"]
)
def test_timms_networks_pass(name):
    timm = pytest.importorskip("timm")
    assert preflight(timm.create_model(name), noise(4)).ok


# ---- planted faults


def nf(**arguments):
    return create_model("nf_resnet50", 10, **{"width": 1, **arguments})


def with_scales(model, change):
    """Set the scale of every convolution of the blocks to change(block, name, scale)."""
    for block in model.blocks:
        for name, layer in block.named_children():
            if name.startswith("conv"):
                layer.scale = change(block, name, layer.scale)
    return model


READS_TRUNK = ("conv0", "conv_shortcut")


def without_reset():
    model, variance = nf(), 1.0
    for block in model.blocks:
        for name in READS_TRUNK:
            if hasattr(block, name):
                getattr(block, name).scale *= block.beta / math.sqrt(variance)
        variance += block.alpha**2
    return model


def with_forward(model, forward):
    """Replace the forward pass of the blocks by forward(block, h, a), as a mistake in the code would."""
    for block in model.blocks:
        block.forward = lambda h, block=block: forward(block, h, block.act(h))
    return model


def shortcut_of(block, h, a):
    return block.conv_shortcut(a) if block.is_transition else h


def without_alpha(block, h, a):
    return block.join(shortcut_of(block, h, a), block.branch(a), None, block.skip_gain)


def with_a_weak_shortcut(block, h, a):
    shortcut = block.conv_shortcut(a) if block.is_transition else 0.7 * h
    return block.join(shortcut, block.branch(a), None, block.alpha * block.skip_gain)


def with_single_gates():
    model = nf(se_ratio=0.5)
    for block in model.blocks:
        block.gate = lambda branch, block=block: block.squeeze_excite(branch)
    return model


def with_weights_times(factor):
    model = nf()
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "fan_in"):
                module.weight *= factor
    return model


def with_dead_units():
    model = nf()
    with torch.no_grad():
        model.blocks[5].conv1.bias.fill_(-8.0)
    return model


class Plain(nn.Module):
    """User's block without normalization: h + conv(relu(conv(relu(h)))), with He initialisation."""

    def __init__(self, channels, gain=1.0):
        super().__init__()
        self.conv0, self.conv1 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        for conv in (self.conv0, self.conv1):
            nn.init.kaiming_normal_(conv.weight)
            conv.weight.data *= gain

    def forward(self, h):
        return h + self.conv1(torch.relu(self.conv0(torch.relu(h))))


def plain(depth=12, gain=1.0):
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), *(Plain(32, gain) for _ in range(depth)))


FAULTS = {
    "gamma left out": (lambda: with_scales(nf(), lambda b, n, s: s / RELU), "off design", "gamma was left out"),
    "gamma of silu": (
        lambda: with_scales(nf(), lambda b, n, s: s / RELU * ACTIVATIONS["silu"][1]),
        "off design",
        "the gamma of silu",
    ),
    "gamma of gelu": (
        lambda: with_scales(nf(), lambda b, n, s: s / RELU * ACTIVATIONS["gelu"][1]),
        "off design",
        "the gamma of gelu",
    ),
    "beta constant": (
        lambda: with_scales(nf(), lambda b, n, s: s * b.beta if n in READS_TRUNK else s),
        "off design",
        "beta is taken as 1,",
    ),
    "variance not reset": (without_reset, "off design", "beta is taken as"),
    "means not removed": (lambda: nf(standardize=False), "means kept", "is not standardised"),
    "gates without 2": (with_single_gates, "off theory", "squeeze-excite without its factor 2"),
    "alpha missing": (lambda: with_forward(nf(), without_alpha), "off theory", "without its alpha"),
    "shortcut scaled": (lambda: with_forward(nf(), with_a_weak_shortcut), "off theory", "the shortcut is scaled down"),
    "weights times 10": (lambda: with_weights_times(10.0), "weights at the wrong scale", "have norm 10"),
    "weights times 0.001": (lambda: with_weights_times(1e-3), "vanishes", "drawn too small"),
    "dead units": (with_dead_units, "dead", "never vary"),
    "no normalization at all": (plain, "grows", "times that of the block before"),
    "weights of a plain network too large": (lambda: plain(3, gain=3.0), "grows", "too large"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_planted_fault_is_reported_with_its_cause(case):
    build, verdict, cause = FAULTS[case]
    torch.manual_seed(0)
    report = preflight(build(), noise())
    by_verdict = {fault.verdict: fault for fault in report.faults}
    assert not report.ok
    assert verdict in by_verdict, str(report)
    assert cause in by_verdict[verdict].cause
    if by_verdict[verdict].block is not None:
        assert report.table.verdict[by_verdict[verdict].block] in by_verdict
    assert "Cure: " in str(report)


def test_float16_overflows_are_reported_where_they_start():
    model, x = nf(), noise(2, size=32)
    with torch.no_grad():
        model.blocks[2].conv1.gain.fill_(3e4)
    (overflow,) = preflight(model, x, precision="float16").faults
    assert (overflow.block, overflow.verdict) == (3, "overflows")
    assert "65,504" in overflow.cause and "first by convolution of values" in overflow.cause
    assert "in blocks.2.conv1" in overflow.cause
    with torch.no_grad():
        model.stem.gain.fill_(3e4)
    (overflow,) = preflight(model, x, precision="float16").faults
    assert (overflow.block, overflow.verdict) == (0, "overflows")
    assert all(fault.verdict != "overflows" for fault in preflight(model, x).faults)


def test_a_fault_is_reported_at_its_first_block():
    model = nf()
    model.blocks[9].conv1.scale *= 2
    report = preflight(model, noise())
    assert [(f.block, f.verdict) for f in report.faults] == [(10, "off design")]
    assert report.table.verdict[10] == "off design" and report.table.verdict[9] == "matches theory"


# ---- rules by hand


def table(var, mean_sq=None, stage=None, **columns):
    n = len(var)
    filled = {"residual_var": 1.0, "grad_var": 1.0, "dead": 0.0, "peak": 3.0} | columns
    return pd.DataFrame({"stage": stage or [-1, *[0] * (n - 1)], "mean_sq": mean_sq or 0.0, "var": var, **filled})


def verdicts(signal_table, closed=None):
    closed = pd.Series([False] * len(signal_table)) if closed is None else pd.Series(closed)
    return {(f.block, f.verdict) for f in broken_rules(signal_table, closed, "float32")}


def test_linear_growth_is_sound_and_doubling_is_not():
    assert verdicts(table([1.0 + j for j in range(40)])) == set()
    assert verdicts(table([0.01, *(1.0 + j for j in range(40))])) == set()
    assert verdicts(table([2.0**j for j in range(5)])) == {(i, "grows") for i in (1, 2, 3, 4)}
    assert verdicts(table([1.0, 2.0, 4.0, 8.0])) == set()  # three in a row are too few
    assert verdicts(table([1.0, 101.0])) == {(1, "grows")}


def test_a_quarter_per_stage_is_allowed_for_average_pools():
    stage = [-1, 0, 1, 2, 3]
    assert verdicts(table([1.0, 0.25, 0.07, 0.016, 0.004], stage=stage)) == set()
    assert verdicts(table([1.0, 0.25, 0.001, 0.0003, 0.0001], stage=stage)) == {(i, "vanishes") for i in (2, 3, 4)}


def test_channel_means_from_the_stem_or_of_closed_blocks_are_allowed():
    mean_sq, stage = [5.0, 5.0, 4.5], [-1, 0, 1]
    assert verdicts(table([1.0, 1.0, 1.0], mean_sq, stage)) == {(2, "mean shift")}
    assert verdicts(table([1.0, 1.0, 1.0], mean_sq, stage), [True, True, True]) == set()
    assert verdicts(table([1.0, 1.0, 1.0], [0.0, 4.5, 0.0], stage)) == {(1, "mean shift")}


def test_gradient_growth_is_counted_from_the_last_block():
    assert verdicts(table([1.0] * 6, grad_var=[math.nan, 81.0, 27.0, 9.0, 3.0, 1.0])) == {
        (i, "gradient grows") for i in (1, 2, 3, 4)
    }
    assert verdicts(table([1.0] * 6, grad_var=[math.nan, 16.0, 8.0, 4.0, 2.0, 1.0])) == set()


def test_values_that_are_not_finite_are_the_only_fault():
    signal_table = table([1.0, 50.0, math.nan, math.nan], peak=[3.0, 9.0, math.inf, math.nan])
    (fault,) = broken_rules(signal_table, pd.Series([False] * 4), "bfloat16")
    assert (fault.block, fault.verdict) == (2, "overflows")
    assert "bfloat16" in fault.cause and "before is 9" in fault.cause


def test_runs_of_large_ratios_are_marked_at_any_position():
    assert in_a_run([9.0, 0.0, 2.0, 2.0, 2.0, 2.0, 0.0, 2.0], 2.0).tolist() == [False, False, *[True] * 4, False, False]


# ---- the model stays unchanged, and bad input is refused


@pytest.mark.parametrize("build", [lambda: nf(stochastic_depth=0.5), SmallResNet])
def test_the_model_stays_unchanged(build):
    model = build().eval()
    next(model.children()).train()
    with unchanged(model):
        preflight(model, noise(2, size=32))


def test_inputs_that_the_model_cannot_take_are_refused():
    with pytest.raises(WorkbenchError, match=r"\(2, 5, 32, 32\)") as error:
        preflight(SmallResNet(), noise(2, channels=5, size=32))
    assert "5 channels" in str(error.value) and "--in-channels 3" in str(error.value)
    assert "of foreign.py, `h = F.relu(self.bn1(self.conv1(x)))`" in str(error.value)
    with pytest.raises(WorkbenchError, match="RuntimeError") as error:
        preflight(nf(), noise(2, channels=5, size=32))
    assert ".py" not in str(error.value)  # a line of this library would not help
    with pytest.raises(WorkbenchError, match=r"torch\.uint8.*x\.float\(\)"):
        preflight(SmallResNet(), noise(2, size=32).to(torch.uint8))
    for x, offending in [
        ({"x": noise(2)}, "`x` .* dict"),
        ((noise(2), 3), r"`x` .* shape \(2, 3, 64, 64\), int"),
        ((), "`x` .* nothing"),
        (noise(2).fill_(3), "`x` .* finite .* vary"),
        (noise(2) / 0, "`x` .* finite .* vary"),
    ]:
        with pytest.raises(WorkbenchError, match=offending):
            preflight(SmallResNet(), x)
    with pytest.raises(WorkbenchError, match=r"'fp16'.*'float16'"):
        preflight(SmallResNet(), noise(2), precision="fp16")


# ---- other people's networks, made normalizer-free


@pytest.mark.parametrize("build", [SmallResNet, lambda: create_model("resnet26_cifar", 10)])
def test_a_network_passes_after_its_batchnorm_is_removed(build):
    before = build()
    made = normfree(before, noise(2, size=32)).model
    report = preflight(made, noise(16, size=32))
    assert report.ok and set(report.table.verdict[1:]) == {
        "sound"
    }  # measured with open branches, although the skip gains are zero
    assert all(not p.detach().any() for n, p in made.named_parameters() if n.endswith("skip_gain"))


def test_a_network_without_batchnorm_fails_if_its_branches_are_not_scaled():
    made = normfree(create_model("resnet101", 10, width=1), noise(2)).model
    assert preflight(made, noise()).ok
    for module in made.modules():
        if isinstance(module, BranchGain):
            module.scale = 1.0
        elif hasattr(module, "standardized_weight"):
            module.scale = RELU
    assert "grows" in {fault.verdict for fault in preflight(made, noise()).faults}


# ---- what is cut off


class Added(nn.Module):
    """Block that computes join(h, conv(relu(norm(h))), self)."""

    def __init__(self, join, channels=8):
        super().__init__()
        self.join, self.norm = join, nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.factor = nn.Parameter(torch.zeros(1))
        self.last = nn.Conv2d(channels, channels, 1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("nothing", torch.zeros(1))

    def forward(self, h):
        return self.join(h, self.conv(torch.relu(self.norm(h))), self)


def added(*joins):
    return nn.Sequential(nn.Conv2d(3, 8, 3), *(Added(join) for join in joins))


def sound(h, branch, block):
    return h + branch


def without_gradient(h, branch, block):
    with torch.no_grad():
        return h + block.conv(branch)


CUT = {
    "branch detached": (lambda h, branch, block: h + branch.detach(), "nothing in its branch"),
    "branch as data": (lambda h, branch, block: branch.data.add_(h), "nothing in its branch"),
    "branch times 0": (lambda h, branch, block: h + 0 * branch, "nothing in its branch"),
    "branch times a buffer": (lambda h, branch, block: branch * block.nothing + h, "nothing in its branch"),
    "branch by addcmul": (lambda h, branch, block: torch.addcmul(h, branch, block.nothing), "nothing in its branch"),
    "zero twice": (lambda h, branch, block: h + block.factor * block.nothing * branch, "nothing in its branch"),
    "skip detached": (lambda h, branch, block: h.detach() + branch, "no gradient passes its shortcut"),
    "skip times 0": (lambda h, branch, block: 0 * h + branch, "no gradient passes its shortcut"),
    "without gradients": (without_gradient, "nothing in its branch"),
}


@pytest.mark.parametrize("way", CUT)
def test_a_branch_or_shortcut_without_gradient_is_cut_off(way):
    join, cause = CUT[way]
    report = preflight(added(sound, join, sound), noise(size=16))
    by_verdict = {fault.verdict: fault for fault in report.faults}
    assert by_verdict["cut off"].block == 2 and cause in by_verdict["cut off"].cause, str(report)
    assert report.table.cut_off[1] == "" and report.table.cut_off[3] == ("shortcut" if "without" in way else "")


def straight_through(h, branch, block):
    h = h + branch
    return h + (h.round() - h).detach()


def quantised(h, branch, block):
    h, codes = h + branch, block.conv.weight[:, :, 0, 0]
    nearest = (h.movedim(1, -1).flatten(0, 2) @ codes.T).argmax(1)
    q = codes[nearest].view(*h.movedim(1, -1).shape).movedim(-1, 1)
    return block.conv(h + (q - h).detach())


def summed(h, branch, block):
    total = torch.zeros_like(h)
    for part in (h, branch):
        total = total + part
    return total


OPEN = {
    "ReZero": lambda h, branch, block: h + block.factor * branch,
    "ReZero in place": lambda h, branch, block: (block.factor * branch).add_(h),
    "ReZero by addcmul": lambda h, branch, block: torch.addcmul(h, branch, block.factor),
    "last layer at zero": lambda h, branch, block: h + block.last(branch),
    "noise": lambda h, branch, block: h + branch + 0.1 * torch.randn_like(h),
    "noise first": lambda h, branch, block: 0.1 * torch.randn_like(h) + block.conv(h + branch),
    "straight-through": straight_through,
    "quantised": quantised,
    "a sum that starts at zero": summed,
}


@pytest.mark.parametrize("way", OPEN)
def test_branches_that_start_at_zero_or_pass_gradients_are_not_cut_off(way):
    report = preflight(added(OPEN[way], OPEN[way], OPEN[way]), noise(size=16))
    assert "cut off" not in {fault.verdict for fault in report.faults}, str(report)


def test_a_detached_shortcut_of_a_library_block_is_cut_off():
    def join(block, h, a):
        return block.join(shortcut_of(block, h, a).detach(), block.branch(a), None, block.alpha * block.skip_gain)

    model = nf()
    model.blocks[4].forward = lambda h, block=model.blocks[4]: join(block, h, block.act(h))
    assert (5, "cut off") in {(fault.block, fault.verdict) for fault in preflight(model, noise()).faults}


def test_a_detached_trunk_is_reported_at_its_block():
    model = added(sound, sound, sound)
    model[2].register_forward_pre_hook(lambda m, args: (args[0].detach(),))
    (fault,) = preflight(model, noise(size=16)).faults
    assert (fault.block, fault.verdict) == (2, "cut off")


# ---- around the blocks


class Around(nn.Module):
    """Stem, three sound blocks and a head. The default stem and head are sound, too."""

    def __init__(self, head=None, stem=None):
        super().__init__()
        self.conv, self.blocks = nn.Conv2d(3, 8, 3), nn.Sequential(*(Added(sound) for _ in range(3)))
        self.head, self.stem = head, stem or (lambda h: h)

    def forward(self, x):
        h = self.blocks(self.stem(self.conv(x)))
        return h if self.head is None else self.head(h)


def masked(h):
    scores = h.mean((2, 3)).masked_fill(torch.eye(len(h), 8).bool(), -math.inf)
    return torch.softmax(scores, 1) - 1 / (h - h).sum()


HEADS = {
    "log of a negative": (lambda h: torch.log(h.mean((2, 3))), "not finite", "first by log of values from -"),
    "zero deviation": (lambda h: h / (h - h).std(), "not finite", "first by div of values from"),
    "one value in many": (
        lambda h: h.clone().index_fill_(1, torch.tensor(0), math.nan),
        "not finite",
        "values that are",
    ),
    "in a dictionary": (lambda h: {"out": [h, h.mean() / 0]}, "not finite", "gives 1 of 250,881"),
    "behind a mask": (masked, "not finite", "first by reciprocal of values from 0 to 0"),
    "detached": (lambda h: h.detach(), "cut off", "no gradient gets from the head"),
    "huge": (lambda h: 1e30 * h, "too large", "e+29"),
    "large": (lambda h: 1000 * h, "too large", "root mean square"),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_faulty_head_after_a_sound_trunk_is_reported(case):
    head, verdict, cause = HEADS[case]
    (fault,) = preflight(Around(head), noise()).faults
    assert (fault.block, fault.verdict) == ("head", verdict)
    assert "the trunk is sound, but" in fault.cause and cause in fault.cause, fault.cause


@pytest.mark.parametrize("head", [None, lambda h: 0 * h, lambda h: None, lambda h: 127 + 50 * h, lambda h: h.argmax(1)])
def test_sound_heads_of_any_kind_pass(head):
    assert preflight(Around(head), noise(size=32)).ok


def test_a_head_that_overflows_float16_is_reported():
    head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 14 * 14, 10))
    nn.init.constant_(head[1].bias, 1e5)
    (fault,) = preflight(Around(head), noise(size=16), precision="float16").faults
    assert (fault.block, fault.verdict) == ("head", "not finite")


@pytest.mark.parametrize(
    ("stem", "verdict"),
    [(torch.log, "overflows"), (lambda h: 100 * h, "too large"), (lambda h: 0 * h, "dead")],
)
def test_a_faulty_stem_is_reported_separately_from_the_blocks(stem, verdict):
    report = preflight(Around(stem=stem), noise(size=32))
    assert (0, verdict) in {(fault.block, fault.verdict) for fault in report.faults}, str(report)
    assert f"- stem: {verdict}: " in str(report) and report.table.verdict[0] == verdict


BYTES = 127 + 70 * torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("x", [BYTES, 70 * noise(), noise() + 20], ids=["bytes", "deviation 70", "mean 20"])
@pytest.mark.parametrize("build", [nf, lambda: create_model("resnet26_cifar", 10), lambda: Around(masked)])
def test_an_input_that_is_not_normalised_is_reported_first(build, x):
    report = preflight(build(), x)
    named = [(fault.block, fault.verdict) for fault in report.faults]
    if x.std() > 2:
        text = str(report)
        assert named[0] == ("input", "not normalised") and f"standard deviation {x.std():.3g}" in text, text
    assert set(named) <= {("input", "not normalised"), ("head", "not finite")}, str(report)


def test_faults_of_the_network_are_reported_next_to_those_of_the_input():
    named = [fault.verdict for fault in preflight(without_reset(), BYTES).faults]
    assert named[0] == "not normalised" and "off design" in named


def test_a_network_that_normalises_its_input_gets_the_original_input():
    class SelfNormalising(SmallResNet):
        def forward(self, x):
            return super().forward((x - 127) / 70)

    assert preflight(SelfNormalising(), BYTES).ok and preflight(SmallResNet(), BYTES).ok
    model = SelfNormalising()
    model.fc.register_forward_pre_hook(lambda m, args: (args[0].detach(),))
    assert [(fault.block, fault.verdict) for fault in preflight(model, BYTES).faults] == [("head", "cut off")]


# ---- inputs that are not images


class Perceptron(nn.Module):
    """Residual perceptron on features (N, C)."""

    def __init__(self, gain=0.5, join=sound):
        super().__init__()
        self.stem, self.head = nn.Linear(20, 64), nn.Linear(64, 2)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))
        self.gain, self.join = gain, join

    def forward(self, x):
        h = self.stem(x)
        for i, layer in enumerate(self.layers):
            branch = self.gain * layer(torch.relu(h))
            h = self.join(h, branch, self) if i == 3 else h + branch
        return self.head(h)


class Language(nn.Module):
    """Tokens (N, T) in, logits (N, T, 50) out."""

    def __init__(self, gain=1.0):
        super().__init__()
        self.embed, self.head, self.gain = nn.Embedding(50, 16), nn.Linear(16, 50), gain
        self.blocks = nn.Sequential(*(TransformerBlock() for _ in range(3)))

    def forward(self, tokens):
        return self.head(self.blocks(self.gain * self.embed(tokens)))


class Two(nn.Module):
    """Network with two inputs, an image and a vector."""

    def __init__(self):
        super().__init__()
        self.net, self.film = SmallResNet(), nn.Linear(5, 3)

    def forward(self, x, condition):
        return self.net(x + self.film(condition)[:, :, None, None])


TOKENS = torch.randint(50, (8, 12), generator=torch.Generator().manual_seed(0))
FEATURES = torch.randn(128, 20, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("build", "x", "blocks"),
    [
        (Perceptron, FEATURES, 6),
        (Language, TOKENS, 6),
        (Two, (noise(size=32), torch.randn(8, 5)), 4),
        (lambda: Language().requires_grad_(True), (TOKENS,), 6),
    ],
)
def test_features_tokens_and_two_inputs_are_measured(build, x, blocks):
    report = preflight(build(), x)
    assert report.ok and len(report.table) == blocks + 1, str(report)
    assert report.table[["var", "residual_var"]][1:].gt(0).all(axis=None) and report.table.grad_var[1:].gt(0).all()


def test_faults_are_found_with_features_and_tokens():
    grown = preflight(Perceptron(gain=4.0), FEATURES)
    assert "grows" in {fault.verdict for fault in grown.faults}
    (cut,) = preflight(Perceptron(join=lambda h, branch, _: h + branch.detach()), FEATURES).faults
    assert (cut.block, cut.verdict) == (4, "cut off")
    (cut,) = preflight(Perceptron(join=lambda h, branch, _: h.detach() + branch), FEATURES).faults
    assert (cut.block, cut.verdict) == (4, "cut off")
    dying = Perceptron()
    nn.init.constant_(dying.stem.bias, -100.0)
    assert "dead" in {fault.verdict for fault in preflight(dying, FEATURES).faults}
    (large,) = preflight(Perceptron(), 70 * FEATURES).faults
    assert (large.block, large.verdict) == ("input", "not normalised")
    (overflow,) = preflight(Language(gain=math.inf), TOKENS).faults
    assert overflow.verdict == "overflows"


def test_frozen_embeddings_are_not_cut_off():
    model = Language()
    model.embed.requires_grad_(False)
    assert preflight(model, TOKENS).ok and not model.embed.weight.requires_grad


def test_lazy_modules_are_refused_and_stay_lazy():
    model = nn.Sequential(nn.LazyConv2d(8, 3), Added(sound))
    with pytest.raises(WorkbenchError, match=r"0 \(LazyConv2d\).*model\(x\)"):
        preflight(model, noise(2))
    assert isinstance(model[0], nn.LazyConv2d)
    model(noise(2))
    assert preflight(model, noise(8)).ok
