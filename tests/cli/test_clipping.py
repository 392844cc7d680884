"""What `train` clips by default. Evidence: the stored configuration and its key, and the first line."""

import pytest
import yaml
from torch import nn

from workbench.lab import Store
from workbench.lab.studies.recipes import clipping_text, default_clip, given_fields
from workbench.training import TrainConfig, training_key
from workbench.training.inputs import source_digest

SMALL = {"steps": 2, "batch_size": 8, "train_size": 16, "device": "cpu"}
OPTIONS = [word for name, value in SMALL.items() for word in ("-p", f"{name}={value}")]


@pytest.mark.parametrize(
    ("model", "given", "clip"),
    [
        ("resnet_tiny", [], None),
        ("resnet_tiny", ["-p", "clip=0.01"], 0.01),
        ("resnet_tiny", ["-p", "clip=null"], None),
        ("nf_resnet_tiny", [], 0.01),
        ("nf_resnet_tiny", ["-p", "clip=0.04"], 0.04),
    ],
)
def test_a_training_with_batchnorm_is_not_clipped_unless_asked(root, command, model, given, clip):
    code, out, errors = command("train", *OPTIONS, "-p", f"model={model}", *given)
    assert code == 0, errors
    (run,) = Store().runs("trainings")
    config = TrainConfig(model=model, clip=clip, **SMALL)
    assert run.tags["key"] == training_key(config, source_digest(config))
    first = out.splitlines()[0]
    assert (f"AGC clips at {clip:g}" in first and "except the classifier" in first) if clip else "clip=null" in first


@pytest.mark.parametrize(
    ("text", "clip"), [("model: resnet_tiny", None), ("model: resnet_tiny\nclip: 0.02", 0.02), ("seed: 1", 0.01)]
)
def test_the_shown_recipe_is_the_one_that_would_run(root, command, tmp_path, text, clip):
    (tmp_path / "r.yaml").write_text(text)
    code, out, _ = command("train", tmp_path / "r.yaml", "--show")
    assert code == 0 and yaml.safe_load(out)["clip"] == clip


def test_a_preset_gives_every_field():
    assert "clip" in given_fields({}, "cifar") and given_fields({"seed": "1"}) == {"seed"}


@pytest.mark.parametrize(
    ("norm", "clip"),
    [(nn.BatchNorm2d(4), None), (nn.SyncBatchNorm(4), None), (nn.BatchNorm1d(4), None), (nn.GroupNorm(2, 4), 0.01)],
    ids=lambda value: type(value).__name__,
)
def test_every_kind_of_batchnorm_counts(norm, clip):
    assert default_clip(TrainConfig(steps=1), nn.Sequential(nn.Conv2d(3, 4, 3), norm)).clip == clip


def test_the_words_name_the_threshold_and_what_is_exempt():
    assert "0.5" in clipping_text(TrainConfig(steps=1, clip=None, clip_norm=0.5))
    text = clipping_text(TrainConfig(steps=1, clip=0.02, clip_exempt=["stage4"]))
    assert all(word in text for word in ("0.02", "classifier", "stage4"))
    assert "except" not in clipping_text(TrainConfig(steps=1, clip_head=True))
