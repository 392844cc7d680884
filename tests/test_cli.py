"""The command line. Evidence: run as a person would, exit codes and sentences."""

import os
import subprocess
import sys
import time

import pytest
from conftest import CHECKOUT

COMMANDS = ["study", "train", "models", "doctor", "ui", "lab"]


def workbench(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "workbench.cli", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=CHECKOUT,
    )


def test_help_is_there_at_once_without_torch_or_mlflow():
    code = "import sys; sys.argv = ['workbench', '--help']\nfrom workbench import cli\ntry: cli.main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'mlflow', 'optuna', 'pandas') if m in sys.modules])"
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT)
        seconds.append(time.perf_counter() - started)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(name in done.stdout for name in COMMANDS)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    done = workbench(command, "--help")
    assert done.returncode == 0
    assert f"workbench {command}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stduy"], "unknown command 'stduy': did you mean 'study'?"),
        (["study", "large_bach"], "unknown study 'large_bach': did you mean 'large_batch'?"),
        (["study", "studies/clipping_search.yaml", "-p", "cilp=0.1"], "'cilp': did you mean 'clip'?"),
        (["study", "clipping_search", "-p", "trials=many"], "parameter `trials` (='many') must be of type int"),
        (["study", "-p", "clip=0.1"], "-p sets parameters of one study"),
        (["study", "large_batch", "--all"], "not both"),
        (["train", "-p", "modle=x"], "unknown field of TrainConfig 'modle': did you mean 'model'?"),
        (["train", "-p", "batch_size=abc"], "`batch_size` (='abc') must be of type int"),
        (["train", "-p", "clip"], "must have the form NAME=VALUE"),
        (["train", "-p", "data=mnist5K"], "did you mean 'mnist5k'"),
        (["models", "nfnet_f9"], "unknown model 'nfnet_f9': did you mean"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2_and_nothing_is_written(root, arguments, message):
    before = sorted((root / "mlruns").rglob("*"))
    done = workbench(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted((root / "mlruns").rglob("*")) == before


def test_models_lists_names_and_counts():
    done = workbench("models", "nf_resnet50")
    assert "25,557,048" in done.stdout


def test_outside_a_workbench_the_cure_is_named(tmp_path):
    code = "import workbench.paths as p; p.__file__ = '/nowhere/x.py'; p.root()"
    environment = {k: v for k, v in os.environ.items() if k != "WORKBENCH_ROOT"} | {"PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert "set WORKBENCH_ROOT" in done.stderr


def test_a_training_from_the_command_line_is_logged_and_reused(root):
    arguments = [
        "train",
        "-p",
        "steps=3",
        "-p",
        "batch_size=16",
        "-p",
        "train_size=32",
        "-p",
        "base_lr=1e-3",
        "-p",
        "device=cpu",
    ]
    first = workbench(*arguments)
    assert first.returncode == 0, first.stderr
    assert "complete: run" in first.stdout and "val_acc" in first.stdout
    again = workbench(*arguments)
    run_id = first.stdout.split("run ")[1].split()[0]
    assert f"reused: run {run_id}" in again.stdout


def test_the_doctor_says_before_it_mends(root):
    from workbench.lab import Store
    from workbench.training import TrainConfig

    store = Store()
    run_id = store.open_training(TrainConfig(steps=1), "k", "full", role="screen", arm="a", owner=None)
    store.set_tags(run_id, process="")
    assert "would close as KILLED: nf_resnet_tiny" in workbench("doctor").stdout
    assert store.status(run_id) == "RUNNING"
    assert "closed as KILLED" in workbench("doctor", "--fix").stdout
    assert store.status(run_id) == "KILLED"
    assert "All well" in workbench("doctor").stdout
