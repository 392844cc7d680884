"""The command line. Evidence: commands run as a user runs them; exit codes, output and messages."""

import io
import os
import re
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from support.checkout import CHECKOUT
from support.messages import missing

from workbench.cli.progress import Board
from workbench.training.distributed import World

COMMANDS = ["study", "train", "evaluate", "compare", "diff", "models", "doctor", "ui", "lab"]
MODELS_COMMANDS = ["list", "convert", "download", "export"]
RUN_MAIN = "from workbench import cli\ntry: cli.main()\nexcept SystemExit: pass\n"


def workbench(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "workbench.cli", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=CHECKOUT,
    )


def test_help_is_fast_and_imports_neither_torch_nor_mlflow():
    code = f"import sys; sys.argv = ['workbench', '--help']\n{RUN_MAIN}"
    code += "print([m for m in ('torch', 'mlflow', 'optuna', 'pandas') if m in sys.modules])"
    seconds = []  # CPU time, because elapsed time depends on what else the machine does
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(name in done.stdout for name in COMMANDS)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("arguments", [("compare",), ("diff", "a", "b")])
def test_commands_that_only_read_the_store_do_not_import_torch(root, arguments):
    """Importing torch takes as long as importing MLflow."""
    code = f"import sys; sys.argv = ['workbench', *{arguments!r}]\n{RUN_MAIN}"
    code += "print([m for m in ('torch', 'optuna', 'papermill') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("name", [*COMMANDS, *(f"models {c}" for c in MODELS_COMMANDS)])
def test_every_command_has_help(name, command):
    code, output, _ = command(*name.split(), "--help")
    assert code == 0
    assert f"workbench {name}" in output
    if name == "models":
        assert all(each in output for each in MODELS_COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["stduy"], ["command", "stduy", "study"]),
        (["study", "large_bach"], ["study", "large_bach", "large_batch"]),
        (["study", "studies/clipping_search.yaml", "-p", "cilp=0.1"], ["cilp", "clip"]),
        (["study", "clipping_search", "-p", "trials=many"], ["trials", "many", "PositiveInt"]),
        (["study", "-p", "clip=0.1"], ["-p", "0"]),
        (["study", "large_batch", "--all"], ["large_batch", "--all"]),
        (["train", "-p", "modle=x"], ["TrainConfig", "modle", "model"]),
        (["train", "-p", "batch_size=abc"], ["batch_size", "abc", "int"]),
        (["train", "-p", "clip"], ["clip", "NAME=VALUE"]),
        (["train", "-p", "data=mnist5K"], ["mnist5K", "mnist5k"]),
        (["models", "nfnet_f9"], ["nfnet_f9", "nfnet_f7"]),
        (["models", "convert", "nowhere.npz", "x.pth"], ["nowhere.npz"]),
        (["models", "convert", "nfnet_f8", "x.pth"], ["nfnet_f8", "nfnet_f6"]),
        (["models", "export", "nfnet_f0", "x.tflite"], ["x.tflite", ".onnx", ".pt2"]),
        (["models", "download", "nf_resnet50"], ["nf_resnet50"]),
        (["evaluate", "nfnet_f0", "--data", "/nowhere"], ["/nowhere"]),
    ],
)
def test_a_mistake_is_refused_with_its_name_before_anything_is_written(root, command, arguments, names):
    before = sorted((root / "mlruns").rglob("*"))
    code, _, errors = command(*arguments)
    assert code == 2 and "Traceback" not in errors
    assert missing(errors, names) == [], errors
    assert sorted((root / "mlruns").rglob("*")) == before


def test_models_lists_counts_sizes_and_multiply_accumulates(command):
    lines = {line.split()[0]: line.split() for line in command("models", "nf_re*50")[1].splitlines()}
    assert lines["nf_resnet50"][1:4] == ["25,557,048", "224", "224"]
    (line,) = [line for line in command("models", "list", "nf_regnet_b2")[1].splitlines() if "b2" in line]
    assert line.split() == [
        "nf_regnet_b2",
        "13,785,904",
        "240",
        "272",
        "1.1451",
        "1.0995",
        "none",
    ]  # by forward, published


def test_weights_are_converted_and_exported_from_the_command_line(tmp_path, command):
    from workbench.models import create_model
    from workbench.weights.checkpoints import load_checkpoint, save_checkpoint

    first = save_checkpoint(create_model("nf_resnet_tiny", 3), tmp_path / "a.safetensors")
    code, output, _ = command("models", "convert", first, tmp_path / "b.npz")
    assert code == 0 and "nf_resnet_tiny, 3 classes" in output
    assert load_checkpoint(tmp_path / "b.npz").recipe["name"] == "nf_resnet_tiny"
    code, output, _ = command("models", "export", tmp_path / "b.npz", tmp_path / "c.pt2")
    assert code == 0 and output.strip().endswith("nf_resnet_tiny, folded")
    program = torch.export.load(tmp_path / "c.pt2").module()
    model = load_checkpoint(first).eval()
    x = torch.randn(1, 3, 28, 31)
    torch.testing.assert_close(program(x), model(x))


@pytest.mark.parametrize(
    "arguments", [["evaluate", "nfnet_f0"], ["models", "--foo"], ["models", "convert"], ["ui", "--port", "x"]]
)
def test_a_wrong_option_prints_the_usage(arguments):
    done = workbench(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "Usage:" in done.stderr


def test_outside_a_workbench_the_message_names_the_variable(tmp_path):
    code = "import workbench.paths as p; p.__file__ = '/nowhere/x.py'; p.root()"
    environment = {k: v for k, v in os.environ.items() if k != "WORKBENCH_ROOT"} | {"PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert "WORKBENCH_ROOT" in done.stderr.splitlines()[-1]


def small_training(steps: int) -> list[str]:
    """Options for a training that takes a second."""
    values = [f"steps={steps}", "batch_size=16", "train_size=32", "base_lr=1e-3", "device=cpu"]
    return [word for value in values for word in ("-p", value)]


def test_a_training_from_the_command_line_is_logged_and_reused(root):
    arguments = ["train", *small_training(steps=3)]
    first = workbench(*arguments)
    assert first.returncode == 0, first.stderr
    assert "collapsed (validation loss" in first.stdout and "val_acc" in first.stdout
    again = workbench(*arguments)
    run_id = first.stdout.split("run ")[1].split()[0]
    assert "reused (validation loss" in again.stdout and f"run {run_id}" in again.stdout


def test_the_weights_of_a_collapsed_training_are_written_with_a_warning(root, command):
    file = root / "weights.safetensors"
    code, output, err = command("train", *small_training(steps=3), "--save", file)
    assert code == 0 and "collapsed" in output and file.is_file()
    assert "collapsed" in err and str(file) in err


def test_the_doctor_reports_first_and_mends_with_fix(root, command):
    from workbench.lab import Store
    from workbench.training import TrainConfig

    store = Store()
    run_id = store.open_training(TrainConfig(steps=1), "k", "full", role="screen", arm="a", owner=None)
    store.set_tags(run_id, process="")
    code, output, _ = command("doctor")
    assert code == 1 and missing(output, ["nf_resnet_tiny", run_id, "RUNNING", "would", "KILLED", "--fix"]) == []
    assert store.status(run_id) == "RUNNING"
    code, output, _ = command("doctor", "--fix")
    assert code == 0 and missing(output, [run_id, "done", "KILLED"]) == []
    assert store.status(run_id) == "KILLED"
    assert "All well" in command("doctor")[1]


@pytest.mark.slow
def test_torchrun_trains_once_for_both_processes_and_the_result_is_reused(root):
    arguments = small_training(steps=4)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for expected in ("collapsed", "reused"):  # after four steps it is no better than guessing
        done = subprocess.run(
            [*torchrun, "-m", "workbench.cli", "train", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
            cwd=CHECKOUT,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert len(re.findall(rf"^{expected}.*: run ", done.stdout, re.MULTILINE)) == 1
    from workbench.lab import Store

    (run,) = Store().search("trainings", "full")
    assert run.status == "FINISHED" and run.metrics["samples_seen"] == 64


@pytest.mark.parametrize("message", ["cannot read [/data/x]", "the [columns] are gone", "4 [inf, inf]"])
def test_messages_that_look_like_markup_are_printed_unchanged(message):
    console = Console(file=io.StringIO(), width=200)
    with Board(console) as board:
        execution = SimpleNamespace(name="a [b]")
        board.on_event(execution, {"kind": "started"})
        board.on_event(execution, {"kind": "broken", "status": "FAILED", "message": message})
        board.on_event(execution, {"kind": "ended", "status": "FAILED"})
    assert message in console.file.getvalue() and "a [b]: failed" in console.file.getvalue()


@pytest.mark.parametrize(
    ("size", "micro", "expected"), [(1, None, None), (1, 8, 8), (2, None, 32), (2, 64, 32), (3, 8, 8)]
)
def test_processes_that_share_a_batch_train_it_in_micro_batches(size, micro, expected):
    assert World(size=size).micro_batch(64, micro) == expected
