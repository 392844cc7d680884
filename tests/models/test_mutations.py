"""Mistakes of public ports, made here on purpose: evidence that the parity tests can fail.

Each mistake must move the network, or its update, visibly away from the literal reference. The distances without a
mistake are below 1e-9 (test_families.py). With a mistake they are above 1e-5.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from support.parity import build, distances, update_distance

from workbench.models import layers, nf_regnet, nf_resnet, nfnet
from workbench.models.layers import ScaledStdConv2d, SqueezeExcite, StochasticDepth
from workbench.optim import AGCStats, hooks
from workbench.optim.norms import unitwise_norm

CAUGHT = 1e-5


def convs(model):
    return [m for m in model.modules() if isinstance(m, ScaledStdConv2d)]


def standardized(self, *, correction=0, added=0.0, floor=1e-4, floor_on_product=True, fan_in=None):
    n = fan_in or self.fan_in
    var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=correction, keepdim=True)
    product = var * n if floor_on_product else torch.clamp(var, min=floor) * n
    product = torch.clamp(product, min=floor) if floor_on_product and floor else product + added
    return (self.weight - mean) * self.gain.view(-1, 1, 1, 1) * self.scale / torch.sqrt(product)


def weights_by(**mistake):
    return lambda patch, model: patch.setattr(
        ScaledStdConv2d, "standardized_weight", lambda self: standardized(self, **mistake)
    )


def fan_in_by(count):
    return lambda patch, model: patch.setattr(
        ScaledStdConv2d, "standardized_weight", lambda self: standardized(self, fan_in=count(self))
    )


def rescale(names, factor):
    """Multiply the folded constants of these convolutions of each block by factor(block)."""

    def mutate(patch, model):
        for block in model.blocks:
            for name in names:
                conv = getattr(block, name, None)
                if conv is not None:
                    conv.scale *= factor(block)

    return mutate


def beta_of_every_block(new):
    """Use another sequence of betas: new(block, index in its stage)."""

    def mutate(patch, model):
        seen = {}
        for block in model.blocks:
            i = seen[block.stage] = seen.get(block.stage, -1) + 1
            for name in ("conv0", "conv_shortcut"):
                if hasattr(block, name):
                    getattr(block, name).scale *= block.beta / new(block, i)

    return mutate


def squeeze_excite_with(activation):
    def mutate(patch, model):
        def forward(self, x):
            return torch.sigmoid(self.expand(activation(self.reduce(x.mean((2, 3))))))[:, :, None, None]

        patch.setattr(SqueezeExcite, "forward", forward)

    return mutate


def gates_not_doubled(patch, model):
    before = SqueezeExcite.forward
    patch.setattr(SqueezeExcite, "forward", lambda self, x: before(self, x) / 2)


def beta_before_the_activation(patch, model):
    for block in model.blocks:
        for name in ("conv0", "conv_shortcut"):
            if hasattr(block, name):
                getattr(block, name).scale *= block.beta

    def forward(self, h):
        a = self.act(h / self.beta)
        branch = self.branch(a)
        return self.join(self.shortcut(h, a), branch, self.gate(branch), self.alpha * self.skip_gain)

    patch.setattr(nfnet.Block, "forward", forward)


def shortcut_of_the_raw_trunk(patch, model):
    patch.setattr(nfnet.Block, "shortcut", lambda self, h, a, original=nfnet.Block.shortcut: original(self, h, h))


def symmetric_padding(patch, model):
    def conv(x, weight, bias, stride, groups):
        return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=groups)

    patch.setattr(layers, "same_conv2d", conv)


def max_pool_of_zeros(patch, model):
    def pool(x):
        top, bottom = layers.same_padding(x.shape[-2], 3, 2)
        left, right = layers.same_padding(x.shape[-1], 3, 2)
        return F.max_pool2d(F.pad(x, (left, right, top, bottom)), 3, 2)

    patch.setattr(nf_resnet, "same_max_pool2d", pool)


def average_over_padding(patch, model):
    for module in (nfnet, nf_regnet):
        patch.setattr(
            module, "same_avg_pool2d", lambda x: F.avg_pool2d(F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)), 2, 2)
        )


def replicated_avg_pool2d(x):
    padded = F.pad(x, (0, 1, 0, 1), mode="replicate")
    return F.avg_pool2d(padded, 2, 2)[..., : -(-x.shape[-2] // 2), : -(-x.shape[-1] // 2)]


def average_without_the_border(patch, model):
    for module in (nfnet, nf_regnet):
        patch.setattr(module, "same_avg_pool2d", replicated_avg_pool2d)


def activation_by(fn):
    def mutate(patch, model):
        model.act = fn
        for block in model.blocks:
            block.act = fn

    return mutate


def stem_without_bias(patch, model):
    stem = model.stem
    patch.setattr(
        stem, "forward", lambda x: layers.same_conv2d(x, stem.standardized_weight(), 0 * stem.bias, 2, 1), raising=False
    )


def gates_after_the_activation(patch, model):
    def branch(self, a):
        out = self.act(self.conv1(self.act(self.conv0(a))))
        return self.conv2(2 * self.squeeze_excite(out) * out)

    patch.setattr(nf_regnet.Block, "branch", branch)


def relu_gamma_exactly(patch, model):
    ratio = math.sqrt(2 / (1 - 1 / math.pi)) / RELU
    rescale(ALL_CONVS, lambda _block: ratio)(patch, model)
    model.gamma *= ratio


ALL_CONVS = ["conv0", "conv1", "conv2", "conv_shortcut"]
RELU, GELU, SILU = 1.7139588594436646, 1.7015043497085571, 1.7881293296813965  # the authors' gammas
# name of the mistake: (case, image size, mutation)
FORWARD = {
    "beta never updated": ("nfnet", "even", beta_of_every_block(lambda block, i: 1.0)),
    "expected variance not reset": (
        "nf_resnet", "even", beta_of_every_block(lambda block, i: 1.04 if block.stage == 1 else block.beta),
    ),
    "no growth in a stage's first block": (
        "nfnet", "even",
        beta_of_every_block(lambda block, i: block.beta if i == 0 else math.sqrt(1 + 0.04 * (i - 1))),
    ),
    "multiplied by beta, not by its reciprocal": (
        "nf_regnet", "even", beta_of_every_block(lambda block, i: 1 / block.beta),
    ),
    "variance taken for deviation": ("nf_regnet", "even", beta_of_every_block(lambda block, i: block.beta**2)),
    "1 / beta before the activation": ("nfnet", "even", beta_before_the_activation),
    "shortcut of the raw trunk": ("nfnet", "even", shortcut_of_the_raw_trunk),
    "alpha missing": ("nfnet", "even", lambda patch, model: [setattr(b, "alpha", 1.0) for b in model.blocks]),
    "gamma left out": ("nf_resnet", "even", rescale(["conv1"], lambda _block: 1 / RELU)),
    "gamma of ReLU by the formula": ("nf_resnet", "even", relu_gamma_exactly),
    "gamma of another activation": ("nfnet", "even", rescale(["conv1"], lambda _block: SILU / GELU)),
    "GELU by erf": ("nfnet", "even", activation_by(F.gelu)),
    "gates with GELU inside": ("nfnet", "even", squeeze_excite_with(lambda x: F.gelu(x, approximate="tanh"))),
    "gates with a scaled ReLU inside": (
        "nf_resnet with squeeze-excite", "even", squeeze_excite_with(lambda x: RELU * F.relu(x)),
    ),
    "gates not doubled": ("nfnet", "even", gates_not_doubled),
    "gates behind the activation": ("nf_regnet", "even", gates_after_the_activation),
    "unbiased variance": ("nfnet", "even", weights_by(correction=1)),
    "eps added": ("nfnet", "even", weights_by(floor=0.0, added=1e-4)),
    "floor of the variance, not of N times it": ("nfnet", "even", weights_by(floor_on_product=False)),
    "fan-in counted over outputs": (
        "nf_resnet", "even", fan_in_by(lambda conv: conv.out_channels * conv.kernel_size**2),
    ),
    "fan-in over all groups": ("nfnet", "even", fan_in_by(lambda conv: conv.fan_in * conv.groups)),
    "symmetric padding": ("nfnet", "even", symmetric_padding),
    "max-pool padded with zeros": ("nf_resnet with squeeze-excite", "even", max_pool_of_zeros),
    "average counts the padding": ("nfnet", "odd", average_over_padding),
    "stem without bias": ("nf_resnet", "even", stem_without_bias),
}  # fmt: skip


@pytest.mark.parametrize("mistake", FORWARD)
def test_a_mistake_in_the_network_is_caught(mistake, monkeypatch):
    case, size, mutate = FORWARD[mistake]
    model, description = build(case)
    mutate(monkeypatch, model)
    deviations = distances(model, description, {"even": (32, 32), "odd": (75, 83)}[size])
    assert deviations["logits"] > CAUGHT, deviations


def test_an_average_that_repeats_the_border_equals_the_reference(monkeypatch):
    model, description = build("nfnet")
    average_without_the_border(monkeypatch, model)
    assert distances(model, description, (75, 83))["logits"] < 1e-9


def on_groups(change):
    """Let `change` alter the parameter groups of the optimizer."""
    original = torch.optim.SGD.__init__

    def init(self, groups, **settings):
        for group in groups:
            change(group)
        original(self, groups, **settings)

    return lambda patch: patch.setattr(torch.optim.SGD, "__init__", init)


def norms_by(fn):
    """Clip in a loop over parameters, with another norm."""

    def clip(parts):
        for part in parts:
            w, g = fn(part.p.detach()), fn(part.p.grad)
            limit = part.clip * w.clamp_min(part.eps)
            part.p.grad.mul_(torch.where(g > limit, limit / g.clamp_min(1e-6), torch.ones_like(g)))
        return AGCStats()

    return lambda patch: patch.setattr(hooks, "clip_parts", clip)


def per_tensor(x):
    return x.norm()


def per_row_of_anything(x):  # timm's rule, on gains stored as (C, 1, 1, 1): a norm for each channel
    return x.abs() if x.ndim <= 1 else x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))


def over_the_inputs(x):  # the other axis of a linear weight
    return x.norm(dim=0, keepdim=True) if x.ndim == 2 else unitwise_norm(x)


def decay_before_clipping(patch):
    """Add weight decay to the gradient before AGC clips it."""
    original = hooks.clip_parts

    def clip(parts):
        for part in parts:
            if part.p.grad is not None and part.p.ndim > 1:
                part.p.grad.add_(part.p.detach(), alpha=1e-2)
        return original(parts)

    patch.setattr(hooks, "clip_parts", clip)


UPDATE = {
    "classifier clipped, too": on_groups(lambda group: group.update(clip=0.02)),
    "one norm a tensor": norms_by(per_tensor),
    "a norm for each gain": norms_by(per_row_of_anything),
    "linear weights by column": norms_by(over_the_inputs),
    "gains and biases not clipped": on_groups(
        lambda group: group.update({"clip": None} if group["name"] == "gains_biases" else {})
    ),
    "gains and biases decayed": on_groups(lambda group: group.update(weight_decay=1e-2)),
    "decay before clipping": decay_before_clipping,
}


@pytest.mark.parametrize("mistake", UPDATE)
def test_a_mistake_in_the_update_is_caught(mistake, monkeypatch):
    UPDATE[mistake](monkeypatch)
    assert update_distance("nfnet") > CAUGHT


def test_the_right_norm_in_the_same_loop_equals_the_reference(monkeypatch):
    norms_by(unitwise_norm)(monkeypatch)
    assert update_distance("nfnet") < 1e-9


def test_convolutions_start_with_fan_in_variance_not_fan_out():
    conv = ScaledStdConv2d(32, 256, 3, groups=2)  # fan-in 16 * 9, fan-out 128 * 9
    assert conv.weight.std().item() == pytest.approx((16 * 9) ** -0.5, rel=0.02)


def test_stochastic_depth_is_drawn_for_each_sample():
    kept = StochasticDepth(0.5)(torch.ones(64, 1, 1, 1)).flatten()
    assert 0 < kept.sum() < 64
