"""The command line in poor surroundings: an ASCII terminal, no PATH, no working directory."""

import subprocess
import sys

import pytest
from support.checkout import CHECKOUT


def workbench(*arguments, cwd=CHECKOUT, **environment):
    variables = {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "workbench.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=variables | environment, capture_output=True, timeout=120)


@pytest.mark.parametrize(
    "arguments", [("--help",), ("models", "nfnet_f0"), ("claims", "--from", "docs"), ("study", "--list")]
)
def test_a_terminal_of_ascii_gets_all_text(root, arguments):
    ended = workbench(*arguments, PYTHONIOENCODING="ascii", WORKBENCH_ROOT=str(CHECKOUT), HOME=str(root))
    assert ended.returncode in (0, 2) and b"Traceback" not in ended.stderr
    assert (ended.stdout + ended.stderr).decode("ascii")


def test_an_error_with_any_character_is_printed_to_a_terminal_of_ascii(root):
    ended = workbench("train", "größe.yaml", PYTHONIOENCODING="ascii:strict", WORKBENCH_ROOT=str(root))
    assert ended.returncode == 2 and b"Traceback" not in ended.stderr and b"yaml" in ended.stderr


@pytest.mark.slow
def test_a_training_needs_no_path(root):
    values = ("steps=2", "batch_size=16", "model=nf_resnet_tiny", "device=cpu", "shift=0")
    ended = workbench("train", *(part for v in values for part in ("-p", v)), WORKBENCH_ROOT=str(root))
    assert ended.returncode == 0, ended.stderr
    assert b"collapsed" in ended.stdout  # after two steps


@pytest.mark.parametrize("named", [True, False])
def test_a_deleted_working_directory_is_an_error_of_one_sentence(tmp_path, named):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = "import os, sys; os.rmdir(os.getcwd()); from workbench.cli import main; main()"
    environment = {"PYTHONPATH": str(CHECKOUT)} | ({"WORKBENCH_ROOT": str(CHECKOUT)} if named else {})
    ended = subprocess.run(
        [sys.executable, "-c", script, "models"], cwd=gone, env=environment, capture_output=True, timeout=120
    )
    assert ended.returncode == 2 and b"Traceback" not in ended.stderr
    assert ended.stderr.count(b"\n") == 1 and b"directory" in ended.stderr
