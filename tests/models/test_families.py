"""The families against a literal float64 re-derivation, and against counts and sequences of the published reference.

Evidence: an independent reference (tests/reference.py) to 1e-9 for logits, features, trunk and every gradient;
published numbers.
"""

import math
from itertools import pairwise

import pytest
import torch
from support.parity import CASES, SIZES, build, distances, update_distance
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from workbench.errors import WorkbenchError
from workbench.models import create_model, list_models
from workbench.models.counting import forward_macs, published_macs
from workbench.models.zoo import entry
from workbench.probes import expected_signal


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_equals_the_literal_reference(case, size, training):
    deviations = distances(*build(case), SIZES[size], training)
    assert all(value < 1e-9 for value in deviations.values()), deviations


@pytest.mark.parametrize("case", ["nfnet", "nf_resnet", "nf_regnet"])
def test_two_optimizer_steps_equal_the_literal_reference(case):
    assert update_distance(case) < 1e-9


# The authors' code with 1000 classes: parameters, and multiply-accumulates in 1e9 at the test and the train size.
PUBLISHED = {
    "nfnet_f0": (71_489_284, "12.38", "6.98"), "nfnet_f1": (132_634_256, "35.54", "17.44"),
    "nfnet_f2": (193_779_228, "62.59", "33.14"), "nfnet_f3": (254_924_200, "114.76", "67.94"),
    "nfnet_f4": (316_069_172, "215.24", "121.12"), "nfnet_f5": (377_214_144, "289.76", "169.50"),
    "nfnet_f6": (438_359_116, "377.28", "228.29"), "nfnet_f7": (499_504_088, "478.78", "298.48"),
    "nf_regnet_b0": (8_595_372, "0.444", None), "nf_regnet_b1": (10_019_208, "0.734", None),
    "nf_regnet_b2": (13_785_904, "1.099", None), "nf_regnet_b3": (18_136_667, "1.999", None),
    "nf_regnet_b4": (29_315_830, "4.467", None), "nf_regnet_b5": (48_707_138, "10.56", None),
    "nf_resnet50": (25_557_048, None, None), "nf_resnet101": (44_549_193, None, None),
    "nf_resnet152": (60_192_858, None, None), "nf_resnet200": (64_673_898, None, None),
    "nf_resnet288": (146_460_552, None, None), "nf_resnet600": (300_646_896, None, None),
}  # fmt: skip
# The same, as far as the digits are published, in millions.
PUBLISHED_MILLIONS = {
    **{f"nfnet_f{n}_plus": m for n, m in enumerate((118.8, 220.4, 321.9, 423.4, 525.0, 626.5, 728.0, 829.6))},
    "nf_regnet_b6": 70.0, "nf_regnet_b7": 101.7, "nf_regnet_b8": 142.3,
}  # fmt: skip


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiply_accumulates_are_the_published_ones(name):
    count, at_test, at_train = PUBLISHED[name]
    row = entry(name)
    with torch.device("meta"):
        model = create_model(name)
    assert parameters(model) == count
    for published, size in ((at_test, row.test_size), (at_train, row.train_size)):
        if published:
            digits = len(published.partition(".")[2])
            assert f"{published_macs(model, size) / 1e9:.{digits}f}" == published
    if at_test is None:
        assert published_macs(model, row.test_size) is None


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_parameters_are_the_published_millions(name):
    with torch.device("meta"):
        assert round(parameters(create_model(name)) / 1e6, 1) == PUBLISHED_MILLIONS[name]


# timm 1.0.31; the first three also by its files' names and shapes (test_checkpoints.py).
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("timm_nf_resnet50", 25_557_032), ("timm_nf_regnet_b1", 10_223_984), ("timm_eca_nfnet_l0", 24_143_924),
        ("timm_nfnet_l0", 35_074_488), ("timm_eca_nfnet_l1", 41_407_728), ("timm_eca_nfnet_l2", 56_722_348),
    ],
)  # fmt: skip
def test_timms_own_nets_have_timms_parameters(name, count):
    with torch.device("meta"):
        assert parameters(create_model(name)) == count


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("nfnet_micro", 37), ("nf_resnet26_cifar", 35), ("nf_regnet_b2", 272),
        ("resnet50", 90), ("skipinit_resnet50", 64), ("fixup_resnet50", 64),
        ("timm_nf_resnet50", 75), ("timm_nf_regnet_b1", 75), ("timm_eca_nfnet_l0", 75),
    ],
)  # fmt: skip
def test_forward_macs_equal_what_torch_counts_in_a_forward_pass(name, size):
    with torch.device("meta"):
        model, image = create_model(name), torch.zeros(1, 3, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    assert forward_macs(model, size) == counter.get_total_flops() // 2


def test_the_two_counts_differ_where_a_stride_does_not_divide():
    with torch.device("meta"):
        b2, f0 = create_model("nf_regnet_b2"), create_model("nfnet_f0")
    assert forward_macs(f0, 256) == published_macs(f0, 256)  # 256 is a multiple of 32
    assert forward_macs(b2, 272) > published_macs(b2, 272)  # 272 / 32 = 8.5


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
            [
                1, 1.0198, 1.0392, 1.0583, 1.0198, 1.0392, 1.0583, 1.0770,
                1.0198, 1.0392, 1.0583, 1.0770, 1.0954, 1.1136, 1.0198, 1.0392,
            ],
        ),
        (
            "nf_regnet_b0",
            [
                1, 1.0198, 1.0198, 1.0392, 1.0583, 1.0198, 1.0392, 1.0583,
                1.0770, 1.0954, 1.1136, 1.0198, 1.0392, 1.0583, 1.0770, 1.0954,
            ],
        ),
    ],
)  # fmt: skip
def test_beta_follows_the_expected_variance(name, expected):
    with torch.device("meta"):
        assert [b.beta for b in create_model(name).blocks] == pytest.approx(expected, abs=1e-4)


def test_stochastic_depth_grows_from_zero_by_rate_over_blocks():
    with torch.device("meta"):
        rates = [b.join.rate for b in create_model("nfnet_f0").blocks]
    assert rates == pytest.approx([0.25 * i / 12 for i in range(12)])


def test_f0_is_built_block_by_block_as_published():
    """Each row is a block: in, out, mid, groups, stride, hidden width of squeeze-excite, as in the authors' code."""
    with torch.device("meta"):
        model = create_model("nfnet_f0")
    built = [
        (
            b.conv0.in_channels,
            b.conv2.out_channels,
            b.conv0.out_channels,
            b.conv1.groups,
            b.stride,
            b.squeeze_excite.reduce.out_features,
        )
        for b in model.blocks
    ]
    deep = (1536, 1536, 768, 6, 1, 768)
    assert built == [
        (128, 256, 128, 1, 1, 128), (256, 512, 256, 2, 2, 256), (512, 512, 256, 2, 1, 256), (512, 1536, 768, 6, 2, 768),
        *[deep] * 5, (1536, 1536, 768, 6, 2, 768), *[deep] * 2,
    ]  # fmt: skip


def test_nf_regnet_b0_has_the_published_branches():
    with torch.device("meta"):
        model = create_model("nf_regnet_b0")
    assert [b.conv0.out_channels for b in model.blocks] == [32, 80, 168, 168, 168, *[344] * 6, *[736] * 5]
    assert [b.conv2.out_channels for b in model.blocks] == [36, *[78] * 3, *[156] * 6, *[330] * 6]
    assert all(b.stride == (2 if i in (0, 1, 4, 10) else 1) for i, b in enumerate(model.blocks))
    assert model.final_conv.out_channels == 960 and all(
        b.conv1.in_channels // b.conv1.groups == 8 for b in model.blocks
    )


@pytest.mark.parametrize(
    ("name", "zero"),
    [("nfnet_micro", False), ("nf_resnet_tiny", False), ("nf_regnet_b0", True), ("resnet_tiny", True)],
)
def test_classifiers_start_as_published(name, zero):
    weight = create_model(name, 50).linear.weight
    assert not weight.any() if zero else weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_fixup_starts_as_its_authors_say():
    model = create_model("fixup_resnet50", 10, width=1)
    block, blocks = model.blocks[4], len(model.blocks)
    mid = block.conv0.out_channels
    assert not block.conv2.weight.any()
    assert block.conv0.weight.std().item() == pytest.approx((2 / mid) ** 0.5 * blocks**-0.25, rel=0.05)
    assert block.conv1.weight.std().item() == pytest.approx((2 / (9 * mid)) ** 0.5 * blocks**-0.25, rel=0.05)
    assert block.scale.item() == 1 and block.bias1a.item() == 0


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


def test_the_groupnorm_baseline_does_not_mix_images_and_has_the_same_convolutions():
    model = create_model("resnet_tiny", 4, norm="group").double()
    with torch.no_grad():
        model.linear.weight.normal_()  # it starts at zero
    x = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    alone = torch.cat([model(image[None]) for image in x])
    torch.testing.assert_close(model(x), alone, rtol=1e-10, atol=1e-12)
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 3 * 3 + 1 and not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert {norm.num_channels // norm.num_groups for norm in norms} <= {8, 16}
    shapes = [
        {k: v.shape for k, v in m.named_parameters() if v.ndim == 4} for m in (model, create_model("resnet_tiny"))
    ]
    assert shapes[0] == shapes[1]
    filters = model.blocks[0].conv1.standardized_weight()
    torch.testing.assert_close(filters.mean((1, 2, 3)), torch.zeros(len(filters)).double(), atol=1e-9, rtol=0)
    with pytest.raises(WorkbenchError, match=r"`norm`.*'batch'.*'group'.*'layer'"):
        create_model("resnet_tiny", norm="layer")
    with pytest.raises(WorkbenchError, match="GroupNorm"):
        expected_signal(model, 32)


def test_no_layer_of_a_normalizer_free_net_mixes_images():
    model = create_model("nfnet_micro", 4).double()
    x = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    together = model(x)
    alone = torch.cat([model(image[None]) for image in x])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


def test_patterns_list_names_and_mistakes_get_the_nearest_name():
    assert list_models("nfnet_f?") == [f"nfnet_f{i}" for i in range(8)]
    with pytest.raises(WorkbenchError, match=r"'nf_resnet5O'.*'nf_resnet50'"):
        create_model("nf_resnet5O")
    with pytest.raises(WorkbenchError, match=r"'skipgain'.*'skip_gain'"):
        create_model("nf_resnet50", skipgain=1.0)
    with pytest.raises(WorkbenchError, match=r"`num_classes`.*-1"):
        create_model("nf_resnet50", num_classes=-1)


def test_a_callable_activation_gets_its_gamma_by_quadrature():
    model = create_model("nf_resnet_tiny", 3, activation=torch.relu)
    assert model.gamma == pytest.approx(1.71285855, rel=1e-7)


BAD = {
    "num_classes": (2.5, "10", True, -1), "in_channels": (0, 3.0, "3", True),
    "dropout": (2, -0.1, "x", float("nan"), 1), "stochastic_depth": (1, 2, -0.1, "x"),
    "alpha": (0, -1, float("nan"), float("inf"), "0.2"), "skip_gain": (None, "a", float("nan")),
    "se_ratio": (-1, 5, "a"), "width": (0, -1, "wide"), "widths": ((), (64,), (1.5, 2, 3, 4), "abcd"),
    "stem": (5, (8, 16)), "stem_strides": ((1, 1), (3, 1, 1, 1)), "group_size": (0, -1, 1.5),
    "activation": (["relu"], 3), "two_convs": ("yes", 1),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values], ids=str
)
def test_invalid_arguments_are_refused_with_name_and_value(name, value):
    arguments = {"num_classes": 10} | {name: value}
    with pytest.raises(WorkbenchError, match="must") as error:
        create_model("nfnet_micro", **arguments)
    assert f"`{name}`" in str(error.value) and repr(value) in str(error.value)


def test_whole_numbers_are_accepted_as_numbers():
    assert create_model("nf_resnet_tiny", 3, skip_gain=1).blocks[0].skip_gain.item() == 1.0
    assert create_model("nfnet_micro", 3, width=2, dropout=0, alpha=1).blocks[0].alpha == 1


@pytest.mark.parametrize(
    "activation", ["swish", torch.nn.PReLU(), lambda x: 1 / 0], ids=["unknown", "module", "raises"]
)
def test_invalid_activations_are_refused(activation):
    with pytest.raises(WorkbenchError, match=r"'swish'|`gamma`.*(PReLU|ZeroDivisionError)"):
        create_model("nf_resnet_tiny", 3, activation=activation)


def test_a_name_in_capitals_gets_the_nearest_name():
    with pytest.raises(WorkbenchError, match=r"'NFNET_F0'.*'nfnet_f0'"):
        create_model("NFNET_F0")
    with pytest.raises(WorkbenchError):
        create_model(["nfnet_f0"])
