"""Tests of the parameter groups. Evidence: the authors' three groups by hand, on our models and on foreign ones."""

import pytest
import torch
from torch import nn

from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.optim import groups_table, param_groups


def by_name(groups):
    return {g["name"]: g for g in groups}


def test_our_nfnet_has_the_authors_groups():
    model = create_model("nfnet_micro", 10)
    groups = by_name(param_groups(model, weight_decay=2e-5, clip=0.01))
    assert groups["classifier"]["names"] == ["linear.weight"]
    assert (groups["classifier"]["clip"], groups["classifier"]["weight_decay"]) == (None, 2e-5)
    assert (groups["gains_biases"]["clip"], groups["gains_biases"]["weight_decay"]) == (0.01, 0.0)
    assert {"linear.bias", "blocks.0.skip_gain", "blocks.0.conv0.gain", "blocks.0.squeeze_excite.reduce.bias"} <= set(
        groups["gains_biases"]["names"]
    )
    assert (groups["weights"]["clip"], groups["weights"]["weight_decay"]) == (0.01, 2e-5)
    assert "blocks.0.squeeze_excite.expand.weight" in groups["weights"]["names"]
    assert not any("gain" in n or "bias" in n for n in groups["weights"]["names"])


def test_every_trainable_parameter_is_in_exactly_one_group():
    model = create_model("nf_resnet_tiny", 10)
    model.stem.weight.requires_grad_(False)
    held = [id(p) for g in param_groups(model) for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_the_rule_finds_the_groups_of_foreign_models():
    norm = by_name(param_groups(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))))
    assert norm["gains_biases"]["names"] == ["0.bias", "1.weight", "1.bias", "2.bias"]


def test_the_state_of_an_optimizer_on_the_groups_round_trips():
    model = create_model("nf_resnet_tiny", 10)
    optimizer = torch.optim.SGD(param_groups(model), lr=0.1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert [g["clip"] for g in optimizer.param_groups] == [0.01, 0.01, None]


def test_a_negative_decay_is_refused():
    with pytest.raises(WorkbenchError, match=r"`weight_decay`.*-1"):
        param_groups(nn.Linear(2, 2), weight_decay=-1)


def test_lazy_layers_are_refused_until_a_batch_gave_them_a_shape():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(WorkbenchError, match=r"Sequential.*lazy"):
        param_groups(model)
    model(torch.randn(1, 1, 4, 4))
    assert by_name(param_groups(model))["classifier"]["names"] == ["2.weight"]


def test_overrides_express_the_papers_layer_study():
    model = create_model("nfnet_micro", 10)
    groups = param_groups(model, clip=0.01, overrides={"stage4": {"clip": None}, "first_conv": {"clip": None}})
    exempt = {name for g in groups if g["clip"] is None for name in g["names"]}
    stage4 = {f"blocks.4.{name}" for name, _ in model.blocks[4].named_parameters()}
    assert exempt == stage4 | {"stem.0.weight", "stem.0.gain", "stem.0.bias", "linear.weight"}
    assert {g["weight_decay"] for g in groups if "blocks.4.conv0.gain" in g["names"]} == {0.0}  # decay as before
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_the_last_override_that_matches_wins():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(4, 3), nn.Linear(3, 2))
    groups = param_groups(
        model, overrides={"*.weight": {"clip": 0.5}, "1.*": {"clip": 0.1, "lr": 0.7, "weight_decay": 0.3}}
    )
    clips = {name: (g["clip"], g.get("lr"), g["weight_decay"]) for g in groups for name in g["names"]}
    assert clips["0.weight"] == (0.5, None, 2e-5) and clips["1.weight"] == clips["1.bias"] == (0.1, 0.7, 0.3)
    assert clips["2.weight"] == (0.5, None, 2e-5)  # the override names the classifier, so it is clipped
    assert clips["0.bias"] == (0.01, None, 0.0)
    torch.optim.SGD(groups, lr=0.1).step()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"stage9": {"clip": None}}, r"parameter pattern 'stage9'.*'stage\d'"),
        ({"stage1": {"clp": None}}, r"'stage1'.*'clp'.*'clip'"),
    ],
)
def test_overrides_that_match_nothing_are_refused(overrides, words):
    with pytest.raises(WorkbenchError, match=words):
        param_groups(create_model("nfnet_micro", 10), overrides=overrides)


def test_the_table_shows_the_group_of_each_parameter():
    model = create_model("nf_resnet_tiny", 10)
    groups = param_groups(model, weight_decay=1e-4, clip=0.02)
    for source in (groups, torch.optim.SGD(groups, lr=0.1)):
        table = groups_table(source).set_index("parameter")
        assert table.loc["linear.weight"].tolist() == ["10x128", "classifier", 1e-4, "exempt"]
        assert table.loc["blocks.0.skip_gain"].tolist() == ["1", "gains_biases", 0.0, "0.02"]
    assert set(groups_table(torch.optim.SGD(model.parameters(), lr=0.1))["clip"]) == {"AGC's"}


def test_the_pattern_vectors_matches_gains_and_biases():
    groups = by_name(param_groups(create_model("nfnet_micro", 10), overrides={"vectors": {"clip": None}}))
    assert groups["gains_biases, clip None"]["clip"] is None and "gains_biases" not in groups
    assert groups["weights"]["clip"] == 0.01


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Task(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = torch.compile(Net())

    def forward(self, x):
        return self.model(x)


def inside_compiled():
    model = Net()
    model.blocks[0] = torch.compile(model.blocks[0])
    return model


WRAPPED = {
    "compiled": lambda: torch.compile(Net()),
    "a compiled block": inside_compiled,
    "data parallel": lambda: nn.DataParallel(Net()),
    "compiled data parallel": lambda: torch.compile(nn.DataParallel(Net())),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(Net()),
    "Lightning": Task,
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_change_neither_names_nor_patterns_nor_groups(wrapper):
    overrides = {"blocks.0.*": {"clip": None}}
    groups = [param_groups(model, overrides=overrides) for model in (Net(), WRAPPED[wrapper]())]
    assert [(g["name"], g["names"]) for g in groups[1]] == [(g["name"], g["names"]) for g in groups[0]]
    table = groups_table(groups[1]).set_index("parameter")
    assert table.loc["blocks.0.weight", "clip"] == table.loc["head.weight", "clip"] == "exempt"


def test_patterns_with_the_prefix_of_a_wrapper_match_too():
    groups = param_groups(torch.compile(Net()), overrides={"_orig_mod.blocks.0.*": {"clip": None}})
    assert {n for g in groups if g["clip"] is None for n in g["names"]} == {
        "blocks.0.weight",
        "blocks.0.bias",
        "head.weight",
    }


def test_a_part_that_is_called_model_keeps_its_name_if_other_parts_exist():
    net = nn.Sequential()
    net.model, net.head = nn.Linear(3, 3), nn.Linear(3, 2)
    assert {n for g in param_groups(net) for n in g["names"]} == {n for n, _ in net.named_parameters()}


def test_every_name_of_a_shared_parameter_is_a_pattern():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    net[1].weight, net[1].stage = net[0].weight, 1
    for pattern in ("1.weight", "stage2"):
        groups = param_groups(net, overrides={pattern: {"clip": 0.5}})
        assert [g["clip"] for g in groups if "0.weight" in g["names"]] == [0.5]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("weight_decay", value) for value in (NAN, INF, -1e-9, "0.1", None, True, torch.zeros(2))),
        *(("clip", value) for value in (NAN, INF, 0, -0.01, "0.01", True, [0.1])),
        *(("clip_eps", value) for value in (NAN, INF, 0, None)),
        *(("lr", value) for value in (NAN, INF, -1, None, lambda step: 0.1)),
    ],
)
def test_a_setting_that_no_training_can_use_is_refused(name, value):
    model = Net()
    with pytest.raises(WorkbenchError, match=f"`{name}`.*blocks"):
        param_groups(model, overrides={"blocks.*": {name: value}})
    if name in ("weight_decay", "clip"):
        with pytest.raises(WorkbenchError, match=f"`{name}`"):
            param_groups(model, **{name: value})


def test_settings_at_their_bounds_and_of_other_kinds_are_taken():
    settings = {"weight_decay": 0, "lr": torch.tensor(0.1), "clip_eps": 1e-30}
    groups = param_groups(Net(), 0.0, lambda step: 0.1, {"blocks.*": settings})
    assert settings in [{key: group.get(key) for key in settings} for group in groups]
