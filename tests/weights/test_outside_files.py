"""Files of weights from outside: absurd metadata, and names with the prefixes of wrappers.

Evidence: small files whose metadata claim what no network has. Networks compute the same before and after.
"""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from workbench import bounded_json
from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.normfree import normfree
from workbench.weights import fold, load_checkpoint, save_checkpoint, to_haiku
from workbench.weights.reading import FORMAT, read_weights

NAME = "nf_resnet_tiny"
DEEP = "[" * 100_000 + "]" * 100_000
RECIPES = {
    "width": f'{{"name": "{NAME}", "width": 1000000000}}',
    "classes": f'{{"name": "{NAME}", "num_classes": 1000000000000}}',
    "channels": f'{{"name": "{NAME}", "num_classes": 3, "in_channels": 1000000000}}',
    "stem": f'{{"name": "{NAME}", "stem": {[8] * 10_000}}}',
    "text": f'{{"name": "{NAME}", "num_classes": "3"}}',
    "lines": json.dumps({"name": NAME, "num_classes": "a\nb"}),
    "digits": f'{{"name": "{NAME}", "num_classes": {"9" * 5000}}}',
    "nan": f'{{"name": "{NAME}", "alpha": NaN}}',
    "infinite": f'{{"name": "{NAME}", "dropout": 1e999}}',
    "deep": DEEP,
    "deep_argument": f'{{"name": "{NAME}", "stem": {"[" * 5000 + "]" * 5000}}}',
    "long_name": json.dumps({"name": "n" * 30_000}),
    "list": "[1]",
    "string": '"x"',
    "no_name": "{}",
    "no_json": "{",
    "user_classes": '{"name": "my_net.py:build", "num_classes": [3]}',
}
GOOD = {"mean": [0.5] * 3, "std": [0.2] * 3, "image_size": 32, "style": "whole"}
PREPROCESS = {
    "image_size": {k: v for k, v in GOOD.items() if k != "image_size"},
    "style": GOOD | {"style": "sideways"},
    "mean": GOOD | {"mean": [float("nan")] * 3},
    "std": GOOD | {"std": [0.0] * 3},
    "std_": GOOD | {"std": True},
    "mean_": GOOD | {"mean": [0.5]},
    "image_size_": GOOD | {"image_size": 10**9},
    "list": [1],
}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return create_model(NAME, 3).eval()


def state(net, prefix=""):
    return {prefix + name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(a, b):
    x = torch.randn(2, 3, 32, 32)
    return torch.equal(a.eval()(x), b.eval()(x))


def refused(function, *args):
    with pytest.raises(WorkbenchError) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 800
    return message


# ---- metadata


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_an_absurd_recipe_is_refused_before_anything_is_built(net, tmp_path, recipe):
    file = tmp_path / "w.safetensors"
    save_file(state(net), file, {"format": FORMAT, "recipe": recipe})
    message = refused(load_checkpoint, file)
    assert "NFResNet" in message or file.name in message


@pytest.mark.parametrize("value", PREPROCESS.values(), ids=PREPROCESS)
def test_wrong_preprocessing_is_refused_on_reading_and_on_writing(net, tmp_path, value, request):
    file = tmp_path / "w.safetensors"
    name = request.node.callspec.id.rstrip("_").replace("list", "preprocess")
    assert name in refused(save_checkpoint, net, file, value) and not file.exists()
    recipe = json.dumps({"name": NAME, "num_classes": 3})
    save_file(state(net), file, {"format": FORMAT, "recipe": recipe, "preprocess": json.dumps(value)})
    message = refused(load_checkpoint, file)
    assert file.name in message and (name in message or "finite" in message)


def test_whole_metadata_are_read_as_written(net, tmp_path):
    read = read_weights(save_checkpoint(net, tmp_path / "w.safetensors", GOOD))
    assert read.preprocess == GOOD and read.recipe == {"name": NAME, "num_classes": 3}


@pytest.mark.parametrize(
    "text", ["[" * 40 + "]" * 40, DEEP, "9223372036854775808", "1e999", "NaN", "{", '"\\ud800"', ""]
)
def test_json_beyond_the_bounds_is_refused(text):
    refused(bounded_json.parse, text)


def test_json_within_the_bounds_is_read():
    assert bounded_json.parse('{"a": [1, -9223372036854775807, 0.5, null, "é"]}')["a"][1] == 1 - 2**63
    assert bounded_json.parse("[" * 32 + "]" * 32) and bounded_json.parse("Infinity", finite=False) == float("inf")
    refused(bounded_json.parse_object, "[1]")


# ---- damaged bytes

TORN = [b"\x80\x04\x95", b"\x80\x04\x95\xff", b"\x80\x04X\x01", b"\x80\x04G\0", b"", b"F1\n.", b"\x80\x04J"]


@pytest.mark.parametrize("content", TORN)
def test_a_pickle_that_ends_within_a_number_is_refused(tmp_path, content):
    (tmp_path / "w.npz").write_bytes(content)
    assert "w.npz" in refused(read_weights, tmp_path / "w.npz")


def test_the_message_about_a_damaged_header_is_short(tmp_path):
    header = json.dumps({"__metadata__": {"format": "x"}, "a": "\n" * 5000}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refused(read_weights, tmp_path / "w.safetensors")


# ---- wrappers


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {f"model.{k}": v for k, v in s.items()},
        lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
        lambda s: {f"model._orig_mod.module.{k}": v for k, v in s.items()},
        lambda s: {k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in s.items()},
        lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "epoch": 3},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {"module": s},
        lambda s: {"model_state_dict": s, "optimizer": {}},
    ],
)
def test_prefixes_and_nesting_of_other_libraries_are_stripped(net, tmp_path, wrap):
    torch.save(wrap(state(net)), tmp_path / "w.pth")
    assert same(load_checkpoint(tmp_path / "w.pth"), net)
    assert same(load_checkpoint(tmp_path / "w.pth", create_model(NAME, 3)), net)


def test_two_tensors_of_one_name_are_refused(net, tmp_path):
    torch.save(state(net) | state(net, "module."), tmp_path / "w.pth")
    refused(load_checkpoint, tmp_path / "w.pth")


def test_a_network_with_an_attribute_model_keeps_its_names(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.head = nn.Linear(2, 3), nn.Linear(3, 1)

    one, other = Net(), Net()
    torch.save(one.state_dict(), tmp_path / "w.pth")
    load_checkpoint(tmp_path / "w.pth", other)
    assert all(torch.equal(a, other.state_dict()[name]) for name, a in one.state_dict().items())


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda net: torch.compile(nn.DataParallel(net))])
def test_a_wrapped_network_is_saved_loaded_and_folded_as_the_network_within(net, tmp_path, wrap):
    file = save_checkpoint(wrap(net), tmp_path / "w.safetensors")
    assert same(load_checkpoint(file), net)
    fresh = create_model(NAME, 3)
    load_checkpoint(file, wrap(fresh))
    assert same(fresh, net) and to_haiku(wrap(net)).keys() == to_haiku(net).keys()
    assert type(fold(wrap(net))) is type(net)


def test_a_network_with_a_compiled_part_is_saved_under_its_own_names(net, tmp_path):
    part = create_model(NAME, 3)
    part.load_state_dict(net.state_dict())
    part.blocks[0] = torch.compile(part.blocks[0])
    assert same(load_checkpoint(save_checkpoint(part, tmp_path / "w.safetensors")), net)


# ---- networks that `normfree` made


@pytest.mark.parametrize("blocks", ["nested", "number", "none"])
def test_a_network_of_any_shape_is_folded_to_plain_convolutions(blocks):
    def part(channels=8):
        return nn.Sequential(nn.Conv2d(channels, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())

    net = part(3)
    if blocks == "nested":
        net.blocks = nn.Sequential(nn.Sequential(part(), part()), part())
    elif blocks == "number":
        net.depth, net.blocks_ = part(), part()
    net.end = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    if blocks == "number":
        object.__setattr__(net, "blocks", 5)
    x = torch.randn(2, 3, 16, 16)
    made = normfree(net, x).model.eval()
    folded = fold(made)
    torch.testing.assert_close(folded(x), made(x))
    assert not any(hasattr(module, "standardized_weight") for module in folded.modules())
