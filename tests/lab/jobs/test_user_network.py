"""A user's network, from a folder of images to the recipe.

Evidence: the pasted lines reach the weights of their training, recipe and checkpoint repeat it, and frequent mistakes
are refused. The network is in two files of a user, in the style of other libraries. The images come from conftest.py.
"""

import json
import math
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from workbench import networks, user_code
from workbench.claims.own_network import judge
from workbench.data.augment import seed_for
from workbench.errors import WorkbenchError
from workbench.lab.jobs import takeaway, user_network
from workbench.lab.jobs.run_all import run_training
from workbench.lab.store.client import Store
from workbench.lab.studies.recipes import parse_config, recipe_text
from workbench.lab.studies.session import Session
from workbench.outcomes import FINISHED
from workbench.training import TrainConfig, planned, train, training_key
from workbench.training.detached.plan import Planned, write_plan
from workbench.training.detached.records import read_records
from workbench.training.scoring import evaluate
from workbench.weights import load_checkpoint
from workbench.weights.released import is_cached

NET = """
import torch.nn.functional as F
from torch import nn

from my_layers import Block


class Net(nn.Module):
    def __init__(self, classes, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.layers = nn.Sequential(Block(width), Block(width))
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.layers(F.relu(self.bn(self.stem(x)))).mean((2, 3)))


def build(classes=1000, width=8):
    return Net(classes, width)


def stubborn():
    return Net(10)


def plain():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""
LAYERS = '''
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """A block."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)
'''
SETTINGS = {"image_size": 12, "batch_size": 8, "steps": 6, "shift": 1, "device": "cpu", "progress": False}


@pytest.fixture
def user_folder(root, monkeypatch, one_thread):
    """Make a user's folder with the network. Its modules are unloaded after the test."""
    folder = root / "mine"
    folder.mkdir()
    (folder / "my_net.py").write_text(NET)
    (folder / "my_layers.py").write_text(LAYERS)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in ("my_net", "my_layers"):
        sys.modules.pop(name, None)


@pytest.fixture
def pair(user_folder, image_folder):
    return user_network.arms("my_net.py:build", data=str(image_folder), skip_gain=1.0, base_lr=0.2, **SETTINGS)


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def session():
    return Session(Store(), study="own_network")


# ---- names


def test_a_file_and_function_become_two_models_that_differ_in_their_norm(pair):
    nf, bn = (user_network._built(pair[arm]) for arm in (user_network.NF, user_network.BN))
    assert pair["BN"].model == "mine/my_net.py:build" and pair["NF+AGC"].model == "normfree:mine/my_net.py:build"
    assert len(norms(bn)) == 5 and not norms(nf)
    assert nf.fc.out_features == bn.fc.out_features == 2  # classes of the image folder
    assert pair["BN"].clip is None and pair["NF+AGC"].clip == 0.01
    assert [networks.network_info(pair[arm].model).norm for arm in ("NF+AGC", "BN")] == ["none", "batch"]


def test_a_file_has_the_same_name_from_every_folder(user_folder, tmp_path, monkeypatch):
    name = user_code.located("my_net.py:build")
    monkeypatch.chdir(tmp_path)
    assert user_code.located("mine/my_net.py:build") == name == "mine/my_net.py:build"
    assert user_code.located("some.package:build") == "some.package:build"
    shutil.copytree(user_folder, outside := tmp_path / "elsewhere")
    assert user_code.located(f"{outside}/my_net.py:build") == f"{outside}/my_net.py:build"


def test_a_network_may_be_named_by_its_module(user_folder, image_folder):
    arms = user_network.arms("my_net:build", data=str(image_folder), **SETTINGS)
    assert arms["NF+AGC"].model == "normfree:my_net:build"
    assert arms["NF+AGC"].model_args["source"] == networks.source_of("my_net.py:build")


def test_the_key_depends_on_the_code_of_both_files_but_not_on_their_comments(pair, user_folder):
    def key():
        return training_key(parse_config({"model": "my_net.py:build", "steps": "1"}), "data")

    before = key()
    (user_folder / "my_layers.py").write_text(LAYERS.replace("A block.", "The block.") + "\n# a remark\n")
    assert key() == before
    (user_folder / "my_layers.py").write_text(LAYERS.replace("+ x)", "+ 0.5 * x)"))
    assert key() != before


def test_files_next_to_the_network_are_found_from_every_folder_and_reloaded_after_a_change(
    user_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(user_folder)])
    monkeypatch.chdir(tmp_path)

    def outputs():
        torch.manual_seed(0)
        return networks.build_network(networks.located("mine/my_net.py:build"), 2).eval()(torch.ones(1, 3, 8, 8))

    before = outputs()
    (user_folder / "my_layers.py").write_text(LAYERS.replace("+ x)", "+ 0.5 * x)"))
    assert not torch.equal(outputs(), before)
    assert str(user_folder) not in sys.path


def test_a_configuration_of_changed_code_is_refused(pair, user_folder):
    (user_folder / "my_layers.py").write_text(LAYERS.replace("+ x)", "+ 0.5 * x)"))
    with pytest.raises(WorkbenchError, match="`source`"):
        user_network._built(pair["NF+AGC"])


def test_a_library_model_is_paired_with_its_twin():
    small = {"data": "mnist5k", "batch_size": 8, "steps": 1}
    for name in ("nf_resnet_tiny", "resnet_tiny"):
        arms = user_network.arms(name, skip_gain=0.5, **small)
        assert (arms["NF+AGC"].model, arms["BN"].model) == ("nf_resnet_tiny", "resnet_tiny")
        assert arms["NF+AGC"].model_args == {"skip_gain": 0.5} and arms["BN"].model_args == {}
    with_control = user_network.arms("nfnet_micro", control="resnet26_cifar", **small)
    assert with_control["BN"].model == "resnet26_cifar"


def test_released_weights_are_used_only_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    assert not is_cached("nfnet_f0") and not is_cached("nf_resnet_tiny")
    (tmp_path / "F0_haiku.npz").touch()
    assert is_cached("nfnet_f0")
    arms = user_network.arms("nf_resnet_tiny", weights="released", data="mnist5k", batch_size=8, steps=1)
    assert arms["NF+AGC"].weights is None  # this model has no released weights


# ---- mistakes


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("my_net.py:biuld", {}, ["'biuld'", "'build'"]),
        ("my_nett.py:build", {}, ["no file", "my_nett.py"]),
        ("nf_resnet_tinny", {}, ["'nf_resnet_tinny'", "'nf_resnet_tiny'"]),
        ("my_net.py:stubborn", {}, ["2 classes", "`num_classes`"]),
        ("my_net.py:plain", {}, ["no BatchNorm"]),
        ("nfnet_micro", {}, ["nfnet_micro", "twin", "control="]),
        ("nf_resnet_tiny", {"control": "nfnet_micro"}, ["`control`", "nfnet_micro", "BatchNorm"]),
        ("my_net.py:build", {"weights": "x.pth"}, ["`weights`", "x.pth", "mine/my_net.py:build"]),
        ("my_net.py:build", {"batch_size": 100}, ["`batch_size`", "100", "training images"]),
        ("my_net.py:build", {"model_args": {"depth": 3}}, ["my_net.py:build", "depth"]),
    ],
)
def test_mistakes_are_refused_before_anything_runs(user_folder, image_folder, model, settings, words):
    with pytest.raises(WorkbenchError) as error:
        user_network.arms(model, data=str(image_folder), **{**SETTINGS, **settings})
    assert all(word in str(error.value) for word in words), error.value


def test_a_missing_folder_and_a_folder_with_one_class_are_refused(user_folder, image_folder):
    with pytest.raises(WorkbenchError, match="pictures"):
        user_network.arms("my_net.py:build", data="pictures", **SETTINGS)
    shutil.rmtree(image_folder / "dark")
    with pytest.raises(WorkbenchError, match="two folders"):
        user_network.arms("my_net.py:build", data=str(image_folder), **SETTINGS)


# ---- steps


def test_preflights_and_suggestion_use_the_networks_and_images_of_the_user(pair):
    preflights = user_network.preflights(pair, images=4)
    assert {arm: p.name for arm, p in preflights.items()} == {arm: c.model for arm, c in pair.items()}
    assert all(len(p.table) == 3 for p in preflights.values())  # stem, two blocks
    suggestion = user_network.suggested(pair["NF+AGC"], lr=0.2, steps=8)
    assert suggestion.low < suggestion.clip < suggestion.high
    assert suggestion.clip <= 0.16 * (1 - 0.9) / 0.2 * 1.01  # no unit moves by more than 16 % of its norm per step


def test_a_rate_that_leaves_no_gradient_is_lowered(pair, monkeypatch):
    tried = []

    def dead_above(model, loader, optimizer, **more):
        tried.append(optimizer.param_groups[0]["lr"])
        if tried[-1] > limit:
            raise WorkbenchError("the first loss and its gradients must not be all 0")
        return "a suggestion"

    monkeypatch.setattr(user_network, "suggest_clip", dead_above)
    limit = 0.3
    assert user_network.suggested(pair["NF+AGC"], lr=0.8) == "a suggestion" and tried == [0.8, 0.2]
    limit = 0.01
    with pytest.raises(WorkbenchError, match="all 0"):
        user_network.suggested(pair["NF+AGC"], lr=0.8)
    reason, searched = user_network.thresholds(pair["NF+AGC"], lr=0.8)
    assert "all 0" in reason and searched["low"] < 0.01 < searched["high"]


def test_both_sides_get_equally_many_trials_and_the_best_are_confirmed_with_fresh_seeds(pair, tmp_path):
    lrs = {"low": 0.02, "high": 0.5, "log": True}
    user_session, file = session(), tmp_path / "out" / "weights.safetensors"
    pair = {arm: config.replace(steps=60) for arm, config in pair.items()}  # long enough to learn
    trials, best = user_network.searched(pair, user_session, lr=lrs, clip=0.0123, trials=2)
    assert trials.arm.value_counts().to_dict() == {"NF+AGC": 2, "BN": 2}
    assert trials["clip"].fillna(0).tolist() == [0.0123, 0.0123, 0, 0]
    assert trials.lr[0] == 0.1  # the middle of the range first
    confirmed = user_network.confirmed(best, [7, 8], user_session, file)
    assert confirmed.groupby("arm").seed.apply(list).to_dict() == {"NF+AGC": [7, 8], "BN": [7, 8]}
    assert confirmed.test_acc.between(0, 1).all() and file.is_file()
    assert user_network.confirmed({}, [7], user_session, file).empty
    noise = user_network.noise_scale(best["NF+AGC"], file, batches=3)
    assert noise.batch == 8 and noise.noise_scale > 0
    assert math.isfinite(judge(trials, confirmed, noise).effect.value.mean)


# ---- the files of the result


@pytest.mark.parametrize("model", ["my_net.py:build", "nf_resnet_tiny"])
def test_the_pasted_lines_reach_the_weights_of_the_training(user_folder, image_folder, model, tmp_path):
    settings = {**SETTINGS, "image_size": 16, "label_smoothing": 0.1, "weight_decay": 0.01}
    pair = user_network.arms(model, data=str(image_folder), skip_gain=1.0, base_lr=0.3, **settings)
    config = pair["NF+AGC"].replace(clip=0.02, clip_exempt=["*bias"], final_lr=0.01, warmup=0.3)
    assert train(config, save=tmp_path / "w.safetensors").outcome in FINISHED
    lines = takeaway.pasted(config)
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(config.seed, "init"))
        namespace = {"loader": user_network._Batches(config, config.steps)}
        exec(lines, namespace)
    trained = load_checkpoint(tmp_path / "w.safetensors", user_network._built(config)).state_dict()
    for name, tensor in namespace["model"].state_dict().items():
        torch.testing.assert_close(tensor, trained[name], rtol=1e-4, atol=1e-6)
    assert len([line for line in lines.splitlines() if line and "import" not in line]) == 9


def test_recipe_and_checkpoint_repeat_the_training(pair, tmp_path, command):
    config, user_session = pair["NF+AGC"], session()
    file = tmp_path / "weights.safetensors"
    run_id, result, _ = run_training(config, user_session, role="confirm", arm="NF+AGC", save=str(file))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text(config))
    assert parse_config({}, str(recipe)) == config
    code, output, _ = command("train", recipe)
    assert code == 0 and run_id[:8] in output  # the store has this training
    model = load_checkpoint(file, user_network._built(config))
    inputs = user_network._Batches(config, 1).inputs
    assert evaluate(model, inputs.val())[1] == result.metrics["val_acc"]


def test_a_worker_trains_a_users_network(pair):
    from workbench.training import worker_task

    config = pair["NF+AGC"].to_dict()
    result = worker_task.train_task({"config": config, "folder": "ckpt", "save": None}, lambda _: None, lambda: False)
    assert json.loads(result)["outcome"] in FINISHED


def test_a_detached_run_of_a_plan_trains_a_users_network(pair, tmp_path):
    config = pair["NF+AGC"].replace(progress=False)
    planned = Planned.of(config, arm="NF+AGC")
    plan = write_plan(tmp_path / "plan.jsonl", [planned])
    command = [sys.executable, "-m", "workbench.training", plan, "--out", tmp_path / "out", "--device", "cpu"]
    completed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    [(_, record)] = read_records(tmp_path / "out")
    assert record.result.key == planned.key and record.result.metrics["val_acc"] == train(config).metrics["val_acc"]


def test_a_configuration_can_be_read_without_the_users_file(pair, user_folder):
    fields = pair["NF+AGC"].to_dict()
    (user_folder / "my_net.py").unlink()
    assert TrainConfig.from_dict(fields) == pair["NF+AGC"]
    with pytest.raises(WorkbenchError, match=r"my_net\.py"):
        user_network._built(pair["NF+AGC"])


def test_a_configuration_with_another_network_takes_the_source_of_that_network(pair, user_folder):
    (user_folder / "other.py").write_text(NET + "\nX = 1\n")
    moved = pair["BN"].replace(model="other.py:build")
    assert moved.model == "other.py:build" and "source" not in moved.model_args  # nothing was read yet
    moved = planned(moved)
    assert moved.model == "mine/other.py:build"
    assert moved.model_args["source"] == networks.source_of("other.py:build") != pair["BN"].model_args["source"]


def test_recipe_and_lines_are_written_to_the_folder_and_kept_with_the_run(pair, tmp_path):
    store = Store()
    run = store.open_notebook("own_network", "own_network.ipynb", {}, "full", "by hand", {})
    message = takeaway.keep(pair["NF+AGC"], Session(store, "own_network", run_id=run), tmp_path / "out")
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"recipe.yaml", "loop.py"}
    assert set(store.artifacts(run)) == {"own_network/recipe.yaml", "own_network/loop.py"}
    assert "./run train FILE" in message


@pytest.mark.slow
def test_the_notebook_turns_a_folder_and_a_file_into_a_recipe(user_folder, image_folder, command):
    shutil.move(image_folder, user_folder / "pictures")
    arguments = {"data": "pictures", "model": "my_net.py:build", "image_size": 12, "batch_size": 8, "steps": 40}
    arguments |= {"trials": 2, "confirm_seeds": [1, 2]}
    options = [text for name, value in arguments.items() for text in ("-p", f"{name}={value}")]
    code, output, errors = command("study", "own_network", "--quick", *options)
    assert code == 0, output + errors
    (folder,) = (user_folder.parent / "mlruns" / "own_network").iterdir()
    assert {f.name for f in folder.iterdir()} == {"recipe.yaml", "loop.py", "weights.safetensors"}
    assert parse_config({}, str(folder / "recipe.yaml")).model == "normfree:mine/my_net.py:build"
