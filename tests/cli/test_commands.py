"""The command line. Evidence: run as a person would, exit codes and sentences."""

import io
import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from support.checkout import CHECKOUT

from workbench.cli.progress import Board
from workbench.training.distributed import World

COMMANDS = ["study", "train", "evaluate", "compare", "diff", "models", "doctor", "ui", "lab"]
OF_MODELS = ["list", "convert", "download", "export"]


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
    seconds = []  # of the processor: a busy machine changes the others
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(name in done.stdout for name in COMMANDS)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("arguments", [("compare",), ("diff", "a", "b")])
def test_who_only_reads_the_store_does_without_torch(root, arguments):
    """It takes as long to import as MLflow."""
    code = f"import sys; sys.argv = ['workbench', *{arguments!r}]\nfrom workbench import cli\ntry: cli.main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'optuna', 'papermill') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("name", [*COMMANDS, *(f"models {c}" for c in OF_MODELS)])
def test_every_command_has_help(name, command):
    code, output, _ = command(*name.split(), "--help")
    assert code == 0
    assert f"workbench {name}" in output
    if name == "models":
        assert all(each in output for each in OF_MODELS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stduy"], "unknown command 'stduy': did you mean 'study'?"),
        (["study", "large_bach"], "unknown study 'large_bach': did you mean 'large_batch'?"),
        (["study", "studies/clipping_search.yaml", "-p", "cilp=0.1"], "'cilp': did you mean 'clip'?"),
        (["study", "clipping_search", "-p", "trials=many"], "parameter `trials` (='many') must be of type PositiveInt"),
        (["study", "-p", "clip=0.1"], "-p sets parameters of one study"),
        (["study", "large_batch", "--all"], "not both"),
        (["train", "-p", "modle=x"], "unknown field of TrainConfig 'modle': did you mean 'model'?"),
        (["train", "-p", "batch_size=abc"], "`batch_size` (='abc') must be of type int"),
        (["train", "-p", "clip"], "must have the form NAME=VALUE"),
        (["train", "-p", "data=mnist5K"], "did you mean 'mnist5k'"),
        (["models", "nfnet_f9"], "unknown model 'nfnet_f9': did you mean"),
        (["models", "convert", "nowhere.npz", "x.pth"], "there is no file of weights at nowhere.npz"),
        (["models", "convert", "nfnet_f8", "x.pth"], "unknown released model 'nfnet_f8': did you mean 'nfnet_f"),
        (["models", "export", "nfnet_f0", "x.tflite"], "must end in .onnx or .pt2"),
        (["models", "download", "nf_resnet50"], "no weights of 'nf_resnet50' were released"),
        (["evaluate", "nfnet_f0", "--data", "/nowhere"], "it is not there"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2_and_nothing_is_written(root, command, arguments, message):
    before = sorted((root / "mlruns").rglob("*"))
    code, _, errors = command(*arguments)
    assert code == 2
    assert message in errors
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
def test_a_wrong_option_is_a_sentence_with_the_usage(arguments):
    done = workbench(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "Usage:" in done.stderr


def test_outside_a_workbench_the_cure_is_named(tmp_path):
    code = "import workbench.paths as p; p.__file__ = '/nowhere/x.py'; p.root()"
    environment = {k: v for k, v in os.environ.items() if k != "WORKBENCH_ROOT"} | {"PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert "set WORKBENCH_ROOT" in done.stderr


def small_training(steps: int) -> list[str]:
    """The options of a training of a second."""
    values = [f"steps={steps}", "batch_size=16", "train_size=32", "base_lr=1e-3", "device=cpu"]
    return [word for value in values for word in ("-p", value)]


def test_a_training_from_the_command_line_is_logged_and_reused(root):
    arguments = ["train", *small_training(steps=3)]
    first = workbench(*arguments)
    assert first.returncode == 0, first.stderr
    assert "complete: run" in first.stdout and "val_acc" in first.stdout
    again = workbench(*arguments)
    run_id = first.stdout.split("run ")[1].split()[0]
    assert f"reused: run {run_id}" in again.stdout


def test_the_doctor_says_before_it_mends(root, command):
    from workbench.lab import Store
    from workbench.training import TrainConfig

    store = Store()
    run_id = store.open_training(TrainConfig(steps=1), "k", "full", role="screen", arm="a", owner=None)
    store.set_tags(run_id, process="")
    code, output, _ = command("doctor")
    assert code == 1 and "trainings: nf_resnet_tiny" in output and "would close it as KILLED" in output
    assert store.status(run_id) == "RUNNING"
    code, output, _ = command("doctor", "--fix")
    assert code == 0 and "done: close it as KILLED" in output
    assert store.status(run_id) == "KILLED"
    assert "All well" in command("doctor")[1]


@pytest.mark.slow
def test_torchrun_trains_once_for_both_processes_and_the_result_is_known_afterwards(root):
    arguments = small_training(steps=4)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for expected in ("complete: run", "reused: run"):
        done = subprocess.run(
            [*torchrun, "-m", "workbench.cli", "train", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
            cwd=CHECKOUT,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count(expected) == 1
    from workbench.lab import Store

    (run,) = Store().search("trainings", "full")
    assert run.status == "FINISHED" and run.metrics["samples_seen"] == 64


@pytest.mark.parametrize("message", ["cannot read [/data/x]", "the [columns] are gone", "4 [inf, inf]"])
def test_what_looks_like_markup_is_shown_as_it_is(message):
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
def test_a_batch_that_processes_share_is_one_of_parts(size, micro, expected):
    assert World(size=size).micro_batch(64, micro) == expected
