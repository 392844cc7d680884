"""A store for several machines: a real MLflow server over HTTP, with PostgreSQL behind it and behind Optuna.

Evidence: the runs that MLflow's client and Optuna find afterwards, also after a kill (-9) of the server in a study.
PostgreSQL comes from Debian's package `postgresql`. Without it, or without psycopg2, all tests here are skipped.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.checkout import CHECKOUT
from support.messages import missing
from support.mlflow_view import client
from support.notebooks import notebook
from support.points import points_twice
from support.ports import free_port

from workbench.cli.serve import wait_until_healthy
from workbench.lab import Store, run_study
from workbench.lab.jobs import search

CELLS = (
    "from workbench.lab import open_session, run_all, search\n"
    "from workbench.lab.statistics.intervals import t_interval\n"
    "from workbench.lab.statistics.verdict import Effect, Verdict\nfrom workbench.training import TrainConfig\n"
    "session = open_session('small', globals())",
    "base = TrainConfig(steps=steps, batch_size=16, train_size=64, eval_every=steps // 4, device='cpu')\n"
    "table = session.table(run_all([base.replace(seed=s) for s in range(3)], session))",
    "space = {'clip': {'low': 0.002, 'high': 0.64, 'log': True}}\n"
    "searched = search(lambda p: base.replace(**p), space, trials=3, session=session)",
    "session.verdict(Verdict(None, Effect('accuracy', t_interval(table.val_acc)), 'done', table[['seed', 'val_acc']]))",
)
TRAININGS = 6  # three of run_all, and three trials


def program(name):
    """Find a program of PostgreSQL on PATH, or where Debian installs it."""
    path = shutil.which(name) or next(
        iter(sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None
    )
    if path is None:
        pytest.skip(f"needs PostgreSQL's {name}: apt-get install postgresql")
    return str(path)


def another_user():
    """Find a user for PostgreSQL, which refuses to run as root. None if this process does not run as root."""
    if os.geteuid() != 0:
        return None
    known = {user.pw_name for user in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None) or pytest.skip(
        "needs a user other than root"
    )


@pytest.fixture(scope="module")
def postgres():
    """A fresh PostgreSQL on loopback. Yields a function that makes a database and returns its URI."""
    if find_spec("psycopg2") is None:
        pytest.skip("needs psycopg2: pip install .[postgres]")
    initdb, server, user = program("initdb"), program("postgres"), another_user()
    folder, port = Path(tempfile.mkdtemp(prefix="workbench-postgres-")), free_port()
    if user is not None:
        shutil.chown(folder, user)
    place, as_user = str(folder / "data"), {"user": user, "cwd": folder, "capture_output": True, "text": True}
    try:
        made = subprocess.run(
            [initdb, "-D", place, "-U", "workbench", "-A", "trust", "-E", "UTF8", "--no-sync"], **as_user
        )
        assert made.returncode == 0, made.stderr
        with open(folder / "log", "w") as log:
            running = subprocess.Popen(
                [server, "-D", place, "-p", str(port), "-h", "127.0.0.1", "-k", "", "-F"],
                user=user,
                cwd=folder,
                stdout=log,
                stderr=log,
            )
        try:
            wait_for_postgres(port, running, folder / "log")
            yield lambda name: make_database(port, name)
        finally:
            running.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            running.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_postgres(port, running, log):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and running.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0 and "ready to accept" in log.read_text():
                return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def make_database(port, name):
    import psycopg2

    connection = psycopg2.connect(host="127.0.0.1", port=port, user="workbench", dbname="postgres")
    connection.autocommit = True
    connection.cursor().execute(f"create database {name}")
    connection.close()
    return f"postgresql+psycopg2://workbench@127.0.0.1:{port}/{name}"


class MlflowServer:
    """`mlflow server` as in the README. It can be killed (-9) with its workers and started again on the same port."""

    def __init__(self, database, artifacts):
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database,
            "--artifacts-destination", str(artifacts), "--host", "127.0.0.1", "--port", str(self.port),
            "--workers", "1",
        ]  # fmt: skip
        self.log = artifacts.parent / "server.log"
        self.process = None

    def start(self):
        quiet = {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        }
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                self.command,
                env=os.environ | quiet,
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
                start_new_session=True,
            )
        wait_until_healthy(self.uri, self.process, str(self.log))

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def servers(postgres, tmp_path, root, monkeypatch, request):
    """A study with three trainings and a search of three trials. Its store and its searches are on servers."""
    for name in ("notebooks", "studies"):
        (root / name).unlink()
        (root / name).mkdir()
    notebook(root / "notebooks" / "small.ipynb", "steps: int = 40  # of each training", *CELLS)
    (root / "studies" / "small.yaml").write_text("question: Does it run?\nnotebook: small.ipynb\n")
    number = abs(hash(request.node.name))
    server = MlflowServer(postgres(f"mlflow_{number}"), tmp_path / "artifacts")
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("WORKBENCH_OPTUNA_STORAGE", postgres(f"optuna_{number}"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield server
    if server.process.poll() is None:
        server.kill()


def check_that_all_is_stored(store):
    """Check that a finished study has nothing lost, nothing repeated and no point twice, however often it started."""
    runs = store.search("trainings", "full")
    finished = [run for run in runs if run.status == "FINISHED"]
    assert len({run.tags["key"] for run in finished}) == len(finished) == TRAININGS
    assert not [run for run in runs if run.status == "RUNNING"]
    assert not points_twice(store, runs)
    for run in finished:
        run_id = run.id
        steps = [point.step for point in client(store).get_metric_history(run_id, "val_acc")]
        assert steps[-1] == (run.metrics["steps_done"] if run.tags["outcome"] == "pruned" else 40)
        assert {"result.json", "config.json", "tables/history.parquet", "tables/history.csv"} <= set(
            store.artifacts(run_id)
        )
        assert f'"{run.tags["key"]}"' in store.read_text(run_id, "result.json")
        assert run.started <= run.ended <= time.time()
    import optuna

    (name,) = optuna.get_all_study_names(search.storage_uri())
    trials = optuna.load_study(study_name=name, storage=search.storage_uri()).trials
    done = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    assert sorted(trial.user_attrs["slot"] for trial in done) == [0, 1, 2]
    assert {trial.user_attrs["row"]["run_id"] for trial in done} <= {run.id for run in finished}


@pytest.mark.slow
def test_a_study_on_servers_is_the_same_study(servers, root, tmp_path):
    store, events = Store(), []
    (run_id,) = run_study("small", store=store, executor="processes:2", listener=events.append)
    run = store.get(run_id)
    assert run.status == "FINISHED", run.tags.get("cause")
    check_that_all_is_stored(store)
    assert {"notebook/run.ipynb", "notebook/run.html", "environment.txt", "tables/table.parquet"} <= set(
        store.artifacts(run_id)
    )
    assert list((tmp_path / "artifacts").rglob("result.json")) and not (root / "mlruns" / "artifacts").exists()
    assert not (root / "mlruns" / "optuna.db").exists()

    assert run_study("small", store=store) == [run_id]
    events.clear()
    (again,) = run_study("small", store=store, rerun="all", executor="processes:2", listener=events.append)
    assert again != run_id
    assert [event["reused"] for event in events if event["kind"] == "training"] == [True] * 3
    check_that_all_is_stored(store)


def command(**variables):
    """Start `workbench study small` as a user does."""
    return subprocess.Popen(
        [sys.executable, "-m", "workbench.cli", "study", "small", "--executor", "processes", "--workers", "2"],
        env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT,
    )  # fmt: skip


def finished(store):
    """{key: run id} of the finished trainings."""
    runs = store.search("trainings", "full", "attributes.status = 'FINISHED'")
    return {run.tags["key"]: run.id for run in runs}


def in_the_middle(store, study):
    """Wait until some trainings are finished and others run. Returns the finished ones."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and study.poll() is None:
        if done := finished(store):
            return done
        time.sleep(0.2)
    raise AssertionError(study.communicate())


@pytest.mark.slow
def test_a_study_stops_when_its_server_is_killed_and_continues_at_the_next_start(servers):
    store = Store()
    study = command(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
    before = in_the_middle(store, study)
    servers.kill()
    _, errors = study.communicate(timeout=300)
    assert study.returncode == 1
    assert missing(errors, [servers.uri]) == [] and "Traceback" not in errors

    servers.start()
    study = command()
    out, errors = study.communicate(timeout=300)
    assert study.returncode == 0, out + errors
    assert before.items() <= finished(store).items()
    check_that_all_is_stored(store)


@pytest.mark.slow
def test_a_study_survives_a_server_that_restarts(servers):
    store = Store()
    study = command(MLFLOW_HTTP_REQUEST_MAX_RETRIES="7")  # minutes
    before = in_the_middle(store, study)
    servers.kill()
    servers.start()
    out, errors = study.communicate(timeout=300)
    assert study.returncode == 0, out + errors
    assert before.items() <= finished(store).items()
    check_that_all_is_stored(store)
    assert [run.status for run in store.search("studies", "full")] == ["FINISHED"]
