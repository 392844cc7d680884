"""The command `check`. Evidence: what a user sees and what the store holds, for library networks, files and images."""

import pytest

from workbench.errors import WorkbenchError
from workbench.lab import Store
from workbench.models import create_model
from workbench.networks import build_network
from workbench.probes.shared import first_channels

USER_NETS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, h):
        return h + 3 * self.conv(torch.relu(h))


def net(depth=2, in_channels=3):
    return nn.Sequential(nn.Conv2d(in_channels, 8, 3), *(Block(8) for _ in range(depth)))


def gray():
    return net(in_channels=3)


class Breaks(nn.Module):
    def forward(self, x):
        h = 3
        return h / 0


class Normed(Block):
    def __init__(self, channels):
        super().__init__(channels)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, h):
        return h + self.norm(self.conv(torch.relu(h)))


def normed(num_classes=10, in_channels=1):
    body = [nn.Conv2d(in_channels, 8, 3), Normed(8), Normed(8)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


def plain(in_channels=1):
    body = [nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def breaks():
    return Breaks()


def nothing():
    return 3
"""


@pytest.fixture
def user_folder(root, monkeypatch):
    (root / "my_nets.py").write_text(USER_NETS)
    monkeypatch.chdir(root)
    return root


def test_a_network_without_residual_additions_is_checked_layer_by_layer(user_folder, command):
    code, output, _ = command("check", "my_nets:plain", "--data", "mnist5k")
    lines = output.splitlines()
    assert code == 0 and lines[0].split()[:2] == ["layer", "module"]
    assert [line.split()[0] for line in lines[1:4]] == ["input", "1", "2"] and "2 of 2 layers: sound" in output
    (run,) = Store().search("checks", "full")
    assert run.metrics["sound"] == 1 and run.metrics["blocks"] == 2 and run.metrics["faults"] == 0


def test_a_sound_network_is_kept_as_a_run_with_exit_code_0(root, command):
    code, output, _ = command("check", "nf_resnet_tiny", "-p", "num_classes=10", "--batch-size", 32)
    assert code == 0 and "nf_resnet_tiny is sound" in output and "matches theory" in output
    store = Store()
    (run,) = store.search("checks", "full")
    assert run.status == "FINISHED" and run.tags["outcome"] == "sound"
    assert run.metrics["sound"] == 1 and run.metrics["blocks"] == 3
    assert run.parameters["model"] == "nf_resnet_tiny" and run.parameters["image_size"] == "28"
    assert {"tables/blocks.parquet", "figures/blocks.png"} <= set(store.artifacts(run.id))


def test_a_users_network_is_found_by_file_and_by_module(user_folder, command):
    code, output, _ = command("check", "my_nets.py:net", "-p", "depth=6", "--image-size", 16)
    assert code == 1 and "my_nets.py:net has" in output and "grows" in output
    code, output, _ = command("check", "my_nets:net", "--image-size", 16)
    assert code in (0, 1) and "run " in output
    code, output, _ = command("check", "my_nets:net", "--data", "mnist5k")  # in_channels follows the data
    assert code in (0, 1) and Store().search("checks", "full")[0].metrics["blocks"] == 2


@pytest.mark.parametrize("name", ["normfree:my_nets.py:normed", "normfree:my_nets:normed", "normfree:resnet_tiny"])
def test_a_normfree_network_is_checked_by_name(user_folder, command, name):
    code, _, errors = command("check", name, "--data", "mnist5k", "-p", "skip_gain=1.0")
    assert code in (0, 1), errors
    (run,) = Store().search("checks", "full")
    assert run.parameters["model"] == name and run.metrics["blocks"] >= 2


def test_images_of_a_data_set_are_used(root, command):
    code, _, _ = command("check", "nf_resnet_tiny", "--data", "mnist5k")
    (run,) = Store().search("checks", "full")
    assert code == 0 and run.parameters["data"] == "mnist5k" and run.parameters["arg_in_channels"] == "1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nf_resnet_tinny"], ["'nf_resnet_tinny'", "'nf_resnet_tiny'"]),
        (["my_nets:nett"], ["'nett'", "'net'"]),
        (["my_nets:nothing"], ["nn.Module", "int"]),
        (["my_nets:net", "-p", "deep=3"], ["my_nets:net", "deep"]),
        (["no_such_module:net"], ["import", "no_such_module"]),
        (["no_such_file.py:net"], ["no file", "no_such_file.py"]),
        (["my_nets:net", "--blocks", "7"], ["module", "'7'"]),
        (["nf_resnet_tiny", "--precision", "half"], ["precision", "'half'"]),
        (["nf_resnet_tiny", "--batch-size", "0"], ["`batch_size`", "at least 1", "0"]),
        (["nf_resnet_tiny", "--image-size", "2"], ["`image_size`", "at least 8", "2"]),
        (["nf_resnet_tiny", "--data", "mnist5k", "--in-channels", "3"], ["`in_channels`", "mnist5k", "1", "3"]),
        (["nf_resnet_tiny", "--data", "/nonexistent"], ["folder", "/nonexistent"]),
        (["my_nets:gray", "--data", "mnist5k"], ["1 channel", "3 channels"]),
        (["my_nets:breaks"], ["ZeroDivisionError: division by zero", "line 27", "my_nets.py", "`return h / 0`"]),
        (["nf_resnet_tiny", "--data", "minst5k"], ["'minst5k'", "'mnist5k'"]),
        (["nf_resnet_tiny", "-p", "width=wide"], ["width", "wide"]),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_kept(user_folder, command, arguments, words):
    code, _, errors = command("check", *arguments)
    assert code == 2 and all(word in errors for word in words), errors
    assert Store().search("checks", "full") == []


def test_a_file_that_raises_during_its_import_is_refused_with_the_error(user_folder):
    (user_folder / "broken.py").write_text("1 / 0")
    with pytest.raises(WorkbenchError, match="ZeroDivisionError"):
        build_network("broken.py:net")


def test_the_first_convolution_gives_the_channels_of_a_network():
    assert first_channels(create_model("nf_resnet_tiny", 10, in_channels=5)) == 5
