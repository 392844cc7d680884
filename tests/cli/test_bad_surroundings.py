"""Servers that do not answer, ports that are taken, and disks that are full or read-only.

Evidence: exit code 2, no traceback, nothing half-written. The message names the place and the variable that changes it.
"""

import contextlib
import http.server
import resource
import shlex
import socket
import threading
import time

import pytest
from support.bad_input.variables import SMALL
from support.messages import missing

from workbench.lab.store import locations


@contextlib.contextmanager
def server(answer):
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as served:
        served.daemon_threads = True
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_a_server_without_a_store_or_without_an_answer_is_named(refused, monkeypatch):
    with server(lambda request: request.send_error(404)) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert missing(refused("compare"), [address]) == []
    monkeypatch.setattr(locations, "PATIENCE", 0.3)
    with server(lambda request: time.sleep(2)) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert missing(refused("compare"), ["MLFLOW_TRACKING_URI", address]) == []


def test_a_taken_port_is_refused_with_its_number(refused):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name in ("ui", "lab"):
            assert missing(refused(name, "--port", port), [str(port), "127.0.0.1", "--port"]) == []


# ---- disks that are full or read-only


@contextlib.contextmanager
def files_of_at_most(size):
    """Imitates a full disk: no file may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.npz"])
def test_weights_that_do_not_fit_on_the_disk_are_not_half_written(refused, bad, name):
    with files_of_at_most(10_000):
        errors = refused("models", "convert", f"{bad}/tiny.safetensors", name)
    assert missing(errors, [name]) == []


def test_a_store_that_does_not_fit_on_the_disk_is_refused_with_the_variable_that_moves_it(refused, root):
    with files_of_at_most(10_000):
        errors = refused(*shlex.split(SMALL))
    assert "disk" in errors and "WORKBENCH_ROOT" in errors


@pytest.mark.slow
def test_a_training_whose_weights_do_not_fit_on_the_disk_fails_without_a_traceback(root, command, tmp_path):
    from workbench.lab import Store

    size = (root / "mlruns" / "mlflow.db").stat().st_size
    with files_of_at_most(size + 2**18):
        code, _, errors = command(
            *shlex.split(SMALL), "-p", "model=nf_resnet26_cifar", "--save", tmp_path / "x.safetensors"
        )
    assert code == 2 and missing(errors, ["x.safetensors"]) == [] and "Traceback" not in errors
    assert not (tmp_path / "x.safetensors").exists()
    (run,) = Store().runs("trainings")
    assert run.status == "FAILED"


def test_a_read_only_store_is_refused_with_the_variable_that_moves_it(
    root, command, recorded_runs, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)  # MLflow makes a folder here for the odd address
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///file:{root}/mlruns/mlflow.db?mode=ro&uri=true")
    code, _, errors = command(*shlex.split(SMALL))
    assert code == 2 and "Traceback" not in errors and recorded_runs() == []
    assert "database" in errors and "WORKBENCH_ROOT" in errors
