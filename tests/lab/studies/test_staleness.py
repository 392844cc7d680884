"""Tests of staleness: a changed line in a copy of the package changes only the keys that depend on it."""

import shutil
from functools import cache

import pytest
import torch
from support.checkout import CHECKOUT

import workbench.source
from workbench.lab.studies import executions
from workbench.lab.studies.spec import Study
from workbench.models import create_model
from workbench.networks import builder_hash
from workbench.training import TrainConfig, training_key
from workbench.weights import save_checkpoint

NET = """
from torch import nn


def build(num_classes=10, in_channels=1):
    body = [nn.Conv2d(in_channels, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""
LINE = "\nanother_line = 1\n"
COMMENT = "\n# another comment\n"
PLAIN = "plain training"
STARTED = "training from weights"
USER = "training of a user's network"
NORMFREE = "training of normfree"
TRAININGS = {PLAIN, STARTED, USER, NORMFREE}
STUDIES = {"large_batch", "small_batch", "ablation", "signal_propagation", "own_network"}
MEASURED = {"signal_propagation", "own_network"}  # by probes, without training


syntax = cache(workbench.source.syntax_without_docstrings)  # the copies differ in one line


@pytest.fixture
def package(root, monkeypatch):
    """A copy of the package. The keys are hashes of its files."""
    shutil.copytree(CHECKOUT / "workbench", root / "workbench", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(workbench.source, "__file__", str(root / "workbench" / "source.py"))
    monkeypatch.setattr(workbench.source, "syntax_without_docstrings", syntax)
    monkeypatch.setattr(executions, "CLAIMS", root / "workbench" / "claims")
    monkeypatch.chdir(root)
    (root / "my_net.py").write_text(NET)
    torch.manual_seed(0)
    save_checkpoint(create_model("nf_resnet_tiny", 10, in_channels=1), "start.safetensors")
    workbench.source.source_hash.cache_clear()
    yield root / "workbench"
    workbench.source.source_hash.cache_clear()


def keys() -> dict[str, str]:
    workbench.source.source_hash.cache_clear()
    config = TrainConfig(steps=2, batch_size=8)
    configs = {
        PLAIN: config,
        STARTED: config.replace(weights="start.safetensors"),
        USER: config.replace(model="my_net.py:build"),
        NORMFREE: config.replace(model="normfree:my_net.py:build"),
    }
    trainings = {name: training_key(config, "data") for name, config in configs.items()}
    studies = {}
    for name in STUDIES:
        study = Study.load(name)
        (parameters,) = study.executions(quick=True)
        if name == "own_network":
            parameters |= {"model": "my_net.py:build", "weights": None}
        studies[name] = "".join(executions.execution_key(study, parameters).values())
    return trainings | studies


def stale_after(file, text=LINE) -> set[str]:
    before = keys()
    with open(file, "a") as stream:
        stream.write(text)
    after = keys()
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("file", "stale"),
    [
        ("models/layers.py", TRAININGS | STUDIES),
        ("optim/clipping.py", TRAININGS | STUDIES),
        ("data/augment.py", TRAININGS | STUDIES),
        ("training/loop.py", TRAININGS | STUDIES),
        ("weights/released.py", {STARTED}),
        ("weights/downloads.py", {STARTED}),
        ("normfree/surgery.py", {USER, NORMFREE, "own_network"}),
        ("networks.py", {USER, NORMFREE, "own_network"}),
        ("user_code.py", {USER, NORMFREE, "own_network"}),
        ("probes/signal.py", MEASURED),
        ("training/step_time.py", {"ablation"}),
        ("training/presets.py", set()),
        ("training/detached/run.py", set()),
        ("training/worker_task.py", set()),
        ("pool/dispatch.py", set()),
        ("claims/large_batch.py", {"large_batch"}),
        ("claims/registry.py", set()),
        ("lab/statistics/intervals.py", STUDIES),
        ("lab/plots/vocabulary.py", set()),
        ("lab/jobs/run_all.py", set()),
        ("lab/store/client.py", set()),
        ("lab/doctor.py", set()),
        ("cli/study_commands.py", set()),
        ("files.py", set()),
    ],
)
def test_a_changed_line_makes_only_its_dependents_stale(package, file, stale):
    assert stale_after(package / file) == stale


def test_a_comment_makes_nothing_stale(package):
    assert stale_after(package / "models" / "layers.py", COMMENT) == set()


def test_a_changed_user_file_makes_its_trainings_and_studies_stale(package):
    assert stale_after(package.parent / "my_net.py") == {USER, NORMFREE, "own_network"}


def test_changed_initial_weights_make_the_training_that_loads_them_stale(package):
    before = keys()
    torch.manual_seed(1)
    save_checkpoint(create_model("nf_resnet_tiny", 10, in_channels=1), "start.safetensors")
    after = keys()
    assert {name for name in before if before[name] != after[name]} == {STARTED}


def test_networks_of_the_library_have_no_builder_hash():
    assert builder_hash("nf_resnet_tiny") == "" != builder_hash("normfree:resnet_tiny")
