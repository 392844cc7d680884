"""The families against a literal float64 re-derivation, and against counts and sequences of the published reference.

Evidence: an independent reference (tests/reference.py) to 1e-9 for logits, features, trunk and every gradient;
published numbers.
"""

import math
from itertools import pairwise

import pytest
import reference
import torch
import torch.nn.functional as F

from workbench.errors import WorkbenchError
from workbench.models import create_model, list_models

CASES = {
    "nf_resnet": (
        "nf_resnet50",
        {"depth": (2, 1), "widths": (16, 32), "width": 1, "stochastic_depth": 0.0},
        {"family": "nf_resnet", "depth": (2, 1), "stem_strides": (2,), "pool": True, "activation": "relu", "se": False},
    ),
    "nf_resnet with squeeze-excite": (
        "nf_resnet50",
        {"depth": (1, 2), "widths": (16, 32), "width": 1, "stochastic_depth": 0.0, "se_ratio": 0.25, "activation": "silu"},
        {"family": "nf_resnet", "depth": (1, 2), "stem_strides": (2,), "pool": True, "activation": "silu", "se": True},
    ),
    "nfnet": (
        "nfnet_f0",
        {"depth": (1, 2, 1, 1), "width": (16, 32, 32, 32), "group_size": 4, "stem": (4, 4, 8), "stochastic_depth": 0.0, "dropout": 0.0},
        {"family": "nfnet", "depth": (1, 2, 1, 1), "stem_strides": (2, 1, 1, 2), "pool": False, "activation": "gelu", "groups_of": lambda c: c // 4},
    ),
}  # fmt: skip


def build(name, overrides):
    """A float64 model with every parameter moved off its special starting value."""
    from workbench.models.zoo import MODELS

    constructor = MODELS[name].func
    settings = {**MODELS[name].keywords, **overrides}
    model = constructor(num_classes=7, **settings).double()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if key.endswith(("gain", "bias")):
                p.add_(0.3 * torch.randn_like(p))
    return model


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(32, 32), (35, 43)], ids=["even", "odd"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_equals_the_literal_reference(case, size, training):
    name, overrides, description = CASES[case]
    model = build(name, overrides).train(training)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    y = torch.tensor([1, 4])
    weights = {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}
    logits, features, trunk = reference.forward(weights, x, **description)

    seen = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: seen.append(out)) for block in model.blocks]
    ours = model(x)
    for hook in hooks:
        hook.remove()
    assert relative(ours, logits) < 1e-9
    assert relative(model.forward_features(x), features) < 1e-9
    for a, b in zip(seen, trunk[1:], strict=True):
        assert relative(a, b) < 1e-9

    F.cross_entropy(ours, y).backward()
    F.cross_entropy(logits, y).backward()
    for key, p in model.named_parameters():
        assert relative(p.grad, weights[key].grad) < 1e-9, key


# Parameter counts of the authors' code with 1000 classes.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("nfnet_f0", 71_489_284), ("nfnet_f1", 132_634_256), ("nfnet_f6", 438_359_116), ("nfnet_f7", 499_504_088),
        ("nf_resnet50", 25_557_048), ("nf_resnet101", 44_549_193), ("nf_resnet152", 60_192_858), ("nf_resnet200", 64_673_898),
        ("nf_resnet288", 146_460_552), ("nf_resnet600", 300_646_896),
    ],
)  # fmt: skip
def test_parameter_counts_are_the_published_ones(name, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in create_model(name).parameters()) == count


def test_squeeze_excite_adds_the_published_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in create_model("nf_resnet50", se_ratio=0.25).parameters()) == 35_635_704


# The expected standard deviation, block by block, as the authors' code computes it.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nfnet_f0", [1, 1.0198, 1.0198, 1.0392, 1.0198, 1.0392, 1.0583, 1.0770, 1.0954, 1.1136, 1.0198, 1.0392]),
        (
            "nf_resnet50",
            [1, 1.0198, 1.0392, 1.0583, 1.0198, 1.0392, 1.0583, 1.0770, 1.0198, 1.0392, 1.0583, 1.0770, 1.0954, 1.1136, 1.0198, 1.0392],
        ),
    ],
)  # fmt: skip
def test_beta_follows_the_expected_variance(name, expected):
    with torch.device("meta"):
        assert [b.beta for b in create_model(name).blocks] == pytest.approx(expected, abs=1e-4)


def test_stochastic_depth_grows_from_zero_by_rate_over_blocks():
    with torch.device("meta"):
        rates = [b.drop.rate for b in create_model("nfnet_f0").blocks]
    assert rates == pytest.approx([0.25 * i / 12 for i in range(12)])


def test_a_new_block_is_its_shortcut():
    model = create_model("nf_resnet26_cifar", 10)
    block = next(b for b in model.blocks if not b.is_transition)
    h = torch.randn(2, 64, 8, 8)
    assert torch.equal(block(h), h)
    assert block.residual(h).std() > 0.5


@pytest.mark.parametrize(
    "name", ["nf_resnet26_cifar", "resnet26_cifar", "nf_resnet_tiny", "resnet_tiny", "nfnet_micro"]
)
def test_small_nets_take_small_images_of_any_channels(name):
    model = create_model(name, 5, in_channels=1)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 5)
    maps = model.forward_stages(torch.randn(2, 1, 32, 32))
    assert all(a.shape[-1] == math.ceil(b.shape[-1] / 2) for b, a in pairwise(maps))


@pytest.mark.parametrize(
    "pair", [("nf_resnet26_cifar", "resnet26_cifar"), ("nf_resnet_tiny", "resnet_tiny"), ("nf_resnet50", "resnet50")]
)
def test_the_batchnorm_twin_has_the_same_skeleton(pair):
    with torch.device("meta"):
        nf, bn = (create_model(name) for name in pair)
    shapes = [{k: v.shape for k, v in m.named_parameters() if v.ndim == 4} for m in (nf, bn)]
    assert shapes[0] == shapes[1]
    assert [(b.stage, b.is_transition) for b in nf.blocks] == [(b.stage, b.is_transition) for b in bn.blocks]


def test_no_layer_of_a_normalizer_free_net_sees_the_batch():
    model = create_model("nfnet_micro", 4).double()
    x = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    together = model(x)
    alone = torch.cat([model(image[None]) for image in x])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


def test_names_patterns_and_mistakes():
    assert list_models("nfnet_f?") == [f"nfnet_f{i}" for i in range(8)]
    with pytest.raises(WorkbenchError, match="did you mean 'nf_resnet50'"):
        create_model("nf_resnet5O")
    with pytest.raises(WorkbenchError, match="did you mean 'skip_gain'"):
        create_model("nf_resnet50", skipgain=1.0)
    with pytest.raises(WorkbenchError, match="at least 1"):
        create_model("nf_resnet50", num_classes=0)


def test_a_callable_activation_gets_its_gamma_by_quadrature():
    model = create_model("nf_resnet_tiny", 3, activation=torch.relu)
    assert model.gamma == pytest.approx(1.71285855, rel=1e-7)
