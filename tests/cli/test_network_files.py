"""Files of weights on the command line: exports and conversions of every kind of network.

Evidence: what the exported file computes, and what a file says after it was loaded and saved.
"""

import json
import warnings

import pytest
import torch
from support.messages import missing

from workbench.data.pixels import Preprocess
from workbench.models import create_model
from workbench.networks import build_network
from workbench.weights import load_checkpoint, save_checkpoint
from workbench.weights.reading import read_weights

NET = """import torch
from torch import nn
def build(num_classes, in_channels):
    conv = lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3, bias=False), nn.BatchNorm2d(b), nn.ReLU())
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(conv(in_channels, 8), conv(8, 8), pool, nn.Linear(8, num_classes))
class Values(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, n)
    def forward(self, x):
        h = self.conv(x).mean((2, 3))
        return self.head(h if h.sum().item() > 0 else -h)  # line 13
def by_values(num_classes): return Values(num_classes)
"""
IMAGES = Preprocess("fit", 20, 24, (0.5, 0.5, 0.4), (0.2, 0.2, 0.3), ("cat", "dog", "emu"), "x" * 16).to_dict()
IMAGES = json.loads(json.dumps(IMAGES))


@pytest.fixture
def saved(root, monkeypatch):
    """Return a function that saves a network of a name and returns it."""
    monkeypatch.chdir(root)
    (root / "mine_net.py").write_text(NET)

    def save(name):
        torch.manual_seed(0)
        size = {"image_size": 24} if name.startswith("normfree:") else {}
        model = build_network(name, 3, 3, **size)
        model.train()(torch.randn(8, 3, 20, 24))  # the statistics of norms
        save_checkpoint(model, "w.safetensors", IMAGES)
        return model.eval()

    return save


NAMES = ["nf_resnet_tiny", "mine_net.py:build", "normfree:mine_net.py:build", "normfree:resnet_tiny"]


@pytest.mark.parametrize("fold", ["--fold", "--no-fold"])
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_network_is_exported_and_computes_the_same(saved, command, name, fold):
    model = saved(name)
    code, _, errors = command("models", "export", "w.safetensors", "x.pt2", fold, "--model", name)
    assert code == 0, errors
    program = torch.export.load("x.pt2").module()
    for n in (1, 5):
        x = torch.randn(n, 3, 20, 24)
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_network_becomes_an_onnx_file_that_computes_the_same(saved, command, name):
    import onnxruntime

    model = saved(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert command("models", "export", "w.safetensors", "x.onnx", "--model", name)[0] == 0
    session, x = onnxruntime.InferenceSession("x.onnx"), torch.randn(3, 3, 20, 24)
    (out,) = session.run(None, {"images": x.numpy()})
    torch.testing.assert_close(torch.tensor(out), model(x), rtol=1e-3, atol=1e-4)


def test_a_file_runs_the_code_of_a_user_only_if_the_user_names_it(saved, command, root):
    saved("mine_net.py:build")
    (root / "mine_net.py").write_text("raise SystemExit('it ran')\n")
    code, _, errors = command("models", "export", "w.safetensors", "x.pt2")
    assert code == 2 and missing(errors, ["w.safetensors", "--model", "mine_net.py:build"]) == []
    assert "it ran" not in errors


def test_names_that_do_not_fit_the_file_are_refused(saved, command):
    saved("mine_net.py:build")
    for name in ("mine_net.py:by_values", "normfree:mine_net.py:build", "nf_resnet_tiny"):
        code, out, errors = command("models", "export", "w.safetensors", "x.pt2", "--model", name)
        assert code == 2 and "w.safetensors" in errors and "Traceback" not in out + errors, errors
    saved("nf_resnet_tiny")
    code, _, errors = command("models", "export", "w.safetensors", "x.pt2", "--model", "nfnet_micro")
    assert code == 2 and missing(errors, ["nf_resnet_tiny", "nfnet_micro"]) == []


def test_a_network_that_cannot_be_traced_is_refused_with_its_line(saved, command, root):
    saved("mine_net.py:by_values")
    code, _, errors = command("models", "export", "w.safetensors", "x.pt2", "--model", "mine_net.py:by_values")
    assert code == 2 and missing(errors, ["Values", "(2, 3, 20, 24)", "forward"]) == [] and "Traceback" not in errors
    assert not (root / "x.pt2").exists() and not (root / "mlruns" / "errors").exists()


# ---- what a file says of its images


def images_of(file):
    return read_weights(file).preprocess


def test_conversions_and_copies_keep_how_images_are_made(saved, command, root):
    saved("nf_resnet_tiny")
    assert command("models", "convert", "w.safetensors", "c.safetensors")[0] == 0
    copied = save_checkpoint(load_checkpoint("w.safetensors"), root / "d.safetensors")
    into = create_model("nf_resnet_tiny", 3)
    load_checkpoint("w.safetensors", into)
    filled = save_checkpoint(into, root / "e.safetensors")
    assert images_of(root / "c.safetensors") == images_of(copied) == images_of(filled) == IMAGES


def test_a_conversion_that_loses_the_classes_says_so(saved, command):
    saved("nf_resnet_tiny")
    for arguments in (["c.pth"], ["c.npz"], ["c.safetensors", "--layout", "workbench"]):
        code, out, errors = command("models", "convert", "w.safetensors", *arguments)
        assert code == 0, errors
        assert ("classes are called" in out) == (not arguments[0].endswith(".safetensors"))


def test_a_changed_network_does_not_keep_the_classes_of_its_file(saved, root):
    saved("nf_resnet_tiny")
    other = load_checkpoint("w.safetensors", num_classes=5)
    kept = images_of(save_checkpoint(other, root / "o.safetensors"))
    assert kept == {**IMAGES, "classes": [], "trained_on": ""}
    gray = load_checkpoint("w.safetensors", in_channels=1)
    assert images_of(save_checkpoint(gray, root / "g.safetensors")) is None


@pytest.mark.parametrize(
    "line",
    [
        ("evaluate", "nf_resnet_tiny", "--data", "x", "--workers", "many"),
        ("evaluate", "nf_resnet_tiny", "--data", "x", "--workers=many"),
        ("replay", "x", "--lr", "many"),
        ("study", "large_batch", "--gpus", "many"),
        ("ui", "--port", "many"),
        ("bench", "--rounds", "many"),
    ],
    ids=" ".join,
)
def test_a_number_that_is_none_is_named_with_its_option(root, command, line):
    code, out, errors = command(*line)
    option = next(part for part in line if part.startswith("--") and "data" not in part).partition("=")[0]
    assert code == 2 and missing(errors, [option, "many"]) == [] and "Traceback" not in out + errors
