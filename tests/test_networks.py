"""Networks by name. Evidence: a user's file that writes a line whenever it runs, and the commands."""

import json
import re

import pytest
import torch
from torch import nn

from workbench.errors import WorkbenchError
from workbench.networks import build_network, located, network_info, source_of
from workbench.training import TrainConfig, planned, train, training_key

NET = """
from pathlib import Path

from torch import nn

with open(Path(__file__).with_name("runs.txt"), "a") as file:
    file.write("run\\n")


def build(num_classes=10, in_channels=3, width=8):
    layers = [nn.Conv2d(in_channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


held = build()
"""
USER = ["my_net.py:build", "my_net:build"]
ALL = [
    *USER,
    "normfree:my_net.py:build",
    "normfree:my_net:build",
    "normfree:resnet_tiny",
    "resnet_tiny",
    "nf_resnet_tiny",
]


@pytest.fixture
def runs(root, monkeypatch):
    """Return how often the user's file has run."""
    (root / "my_net.py").write_text(NET)
    monkeypatch.chdir(root)
    monkeypatch.delitem(__import__("sys").modules, "my_net", raising=False)
    return lambda: len((root / "runs.txt").read_text().splitlines()) if (root / "runs.txt").exists() else 0


def norms(model) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", ALL)
def test_every_kind_of_name_builds_a_network_for_these_classes_and_channels(runs, name):
    model = build_network(name, 7, 1)
    assert model.eval()(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert (norms(model) == 0) == (network_info(name).norm == "none")
    assert runs() <= 1


@pytest.mark.parametrize("name", USER)
def test_a_users_function_takes_arguments_by_name_or_as_a_dictionary(runs, name):
    for arguments in ({"width": 4}, {"arguments": {"width": 4}}):
        assert build_network(name, 7, 1, **arguments)[0].out_channels == 4


def test_a_network_held_by_a_module_is_copied(runs):
    first, second = (build_network("my_net:held") for _ in range(2))
    assert first is not second and first[0].in_channels == 3


def test_a_file_runs_once_per_build_and_never_for_a_configuration(runs):
    config = TrainConfig(model="my_net.py:build", steps=1, batch_size=8, train_size=16, progress=False, device="cpu")
    assert (config.model, config.model_args, runs()) == ("my_net.py:build", {}, 0)
    ready = planned(config)
    assert ready.model_args == {"source": source_of("my_net.py:build")} and planned(ready) == ready
    assert training_key(config, "data") == training_key(ready, "data") and runs() == 0
    assert json.loads(json.dumps(ready.to_dict())) == ready.to_dict()
    build_network("my_net.py:build")
    assert runs() == 1
    result = train(config)
    assert runs() == 2 and result.config == ready


def test_a_configuration_can_name_a_missing_file(root):
    config = TrainConfig(model="elsewhere/net.py:build", steps=1)
    with pytest.raises(WorkbenchError, match=r"elsewhere/net\.py"):
        planned(config)


@pytest.mark.parametrize(
    ("name", "offending"),
    [
        ("nf_resnet_tinny", "nf_resnet_tiny"),
        ("normfree:resnet_tinny", "resnet_tiny"),
        ("my_net.py", "my_net.py:function"),
        ("normfree:my_net.py", "my_net.py:function"),
        ("my_net.py:", "my_net.py:"),
        (":build", ":build"),
    ],
)
def test_a_malformed_or_unknown_name_is_refused_at_once(runs, name, offending):
    for refuse in (lambda: TrainConfig(model=name, steps=1), lambda: build_network(name), lambda: located(name)):
        with pytest.raises(WorkbenchError) as error:
            refuse()
        assert offending in str(error.value)
    assert runs() == 0


@pytest.mark.parametrize("name", ["my_net.py:biuld", "my_net:biuld", "normfree:my_net:biuld"])
def test_an_unknown_function_is_refused_with_the_nearest_name(runs, name):
    with pytest.raises(WorkbenchError, match=r"'biuld'.*'build'"):
        build_network(name)


@pytest.mark.parametrize("value", ["nn.ReLU()", "lambda x: x"])
def test_a_network_with_an_attribute_recipe_is_refused(runs, root, value):
    """The name and the arguments of the network would replace the attribute, and change what the network computes."""
    lines = [
        "from torch import nn",
        "def build():",
        " net = nn.Conv2d(1, 2, 3)",
        f" net.recipe = {value}",
        " return net",
    ]
    (root / "with_recipe.py").write_text("\n".join(lines))
    with pytest.raises(WorkbenchError, match=r"with_recipe\.py:build.*`recipe`"):
        build_network("with_recipe.py:build")


def test_a_changed_file_is_refused_if_its_source_is_given(runs, root):
    ready = planned(TrainConfig(model="my_net.py:build", steps=1))
    (root / "my_net.py").write_text(NET + "\nX = 1\n")
    with pytest.raises(WorkbenchError, match=f"`source` .*{ready.model_args['source']}.*{source_of(ready.model)}"):
        build_network(ready.model, 10, 1, **ready.model_args)


@pytest.mark.parametrize("name", ["my_net.py:build", "normfree:my_net.py:build"])
def test_a_users_network_is_trained_checked_and_evaluated_by_name(runs, root, image_folder, command, name):
    settings = ["-p", f"model={name}", "-p", f"data={image_folder}", "-p", "image_size=12", "-p", "steps=2"]
    code, _, errors = command(
        "train", *settings, "-p", "batch_size=4", "-p", "device=cpu", "--save", root / "w.safetensors"
    )
    assert code == 0, errors
    code, output, errors = command("check", name, "--data", image_folder, "--image-size", 12, "--blocks", "0,2")
    assert code in (0, 1) and "run " in output, errors
    code, output, errors = command(
        "evaluate", name, "--weights", root / "w.safetensors", "--data", image_folder, "--device", "cpu"
    )
    assert code == 0 and "top-1" in output, errors


def test_evaluating_a_users_network_needs_a_file_of_weights(runs, image_folder, command):
    code, _, errors = command("evaluate", "my_net.py:build", "--data", image_folder)
    assert code == 2 and "my_net.py:build" in errors and "Traceback" not in errors


RESIDUAL = """
from torch import nn


class Block(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv = nn.Conv2d(n, n, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(n)

    def forward(self, x):
        return (x + self.bn(self.conv(x))).relu()


class Net(nn.Module):
    def __init__(self, classes, channels, pixels=1):
        super().__init__()
        self.num_classes = 0  # an attribute that says nothing about the outputs
        self.stem = nn.Conv2d(channels, 8, 3, padding=1, bias=False)
        self.bn, self.block = nn.BatchNorm2d(8), Block(8)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(self.pool(self.block(self.bn(self.stem(x)).relu())).flatten(1))


def build(n_classes=5, in_chans=3):
    return Net(n_classes, in_chans)
"""


@pytest.fixture
def residual(root, monkeypatch):
    (root / "user_net.py").write_text(RESIDUAL)
    monkeypatch.chdir(root)
    monkeypatch.delitem(__import__("sys").modules, "user_net", raising=False)
    return root


@pytest.mark.parametrize("name", ["user_net.py:build", "normfree:user_net.py:build"])
def test_classes_and_channels_of_a_users_network_come_from_the_file(residual, command, name):
    """Gray digits of ten classes, though the function has defaults for five classes in colour."""
    options = {"model": name, "steps": 2, "batch_size": 32, "train_size": 64, "device": "cpu", "evaluate_test": "true"}
    settings = [text for option, value in options.items() for text in ("-p", f"{option}={value}")]
    code, output, errors = command("train", *settings, "--save", residual / "w.safetensors")
    assert code == 0, errors
    wanted = float(re.search(r"test_acc +([\d.]+)", output)[1])
    evaluation = ["--weights", residual / "w.safetensors", "--data", "mnist5k", "--device", "cpu"]
    code, output, errors = command("evaluate", name, *evaluation)
    assert code == 0 and f"{wanted:.2%} [" in output and "top-5" in output and "of 1,000" in output, errors

    (residual / "moved").mkdir()
    moved = (residual / "user_net.py").rename(residual / "moved" / "user_net.py")
    name = name.replace("user_net", str(residual / "moved" / "user_net"))
    code, output, errors = command("evaluate", name, *evaluation)
    assert code == 0 and f"{wanted:.2%} [" in output, errors
    moved.write_text(RESIDUAL.replace("relu()", "sigmoid()"))
    code, _, errors = command("evaluate", name, *evaluation)
    assert code == 2 and "changed" in errors and "w.safetensors" in errors and "Traceback" not in errors


def test_a_users_network_that_needs_another_image_size_is_refused_with_a_sentence(residual, image_folder, command):
    network = "nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 10, classes))"
    text = f"from torch import nn\n\n\ndef build(classes):\n    return {network}\n"
    (residual / "flat.py").write_text(text)
    settings = ["-p", "model=flat.py:build", "-p", f"data={image_folder}", "-p", "steps=1", "-p", "batch_size=4"]
    code, _, errors = command("train", *settings, "-p", "device=cpu", "--save", residual / "w.safetensors")
    assert code == 0, errors
    evaluation = ["evaluate", "flat.py:build", "--weights", residual / "w.safetensors", "--data", image_folder]
    code, output, errors = command(*evaluation)
    assert code == 0 and "top-1" in output, errors
    code, _, errors = command(*evaluation, "--image-size", 16)
    assert code == 2 and "flat.py:build" in errors and "16" in errors and "Traceback" not in errors
