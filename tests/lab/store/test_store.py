"""Tests of the store. Evidence: what MLflow's client and the database contain afterwards."""

import gc
import math
import multiprocessing
import os
import sqlite3
import subprocess
import sys

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from support.mlflow_view import client
from support.store_runs import CONFIG, log_training, result

from workbench.cli.serve import serve_ui
from workbench.errors import WorkbenchError
from workbench.lab import Store
from workbench.lab.executors.lifetime import whoami
from workbench.lab.store.database import with_driver, without_password
from workbench.lab.store.locations import tracking_uri


def test_the_store_is_one_absolute_sqlite_file_under_mlruns(root, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert tracking_uri() == f"sqlite:///{root}/mlruns/mlflow.db"
    Store()
    assert not list(tmp_path.glob("*.db")) and not (tmp_path / "mlruns").exists()


def test_a_training_has_its_parameters_tags_and_files_in_the_store(root):
    store = Store()
    run = store.get(log_training(store))
    assert run.name == "nf_resnet_tiny B64 lr0.4 c0.04 s2"
    assert run.status == "FINISHED"
    p = run.parameters
    assert (p["model"], p["norm"], p["batch_size"], p["lr"], p["clip"], p["clip_on"], p["lr_x_clip"]) == (
        "nf_resnet_tiny",
        "none",
        "64",
        "0.4",
        "0.04",
        "1",
        "0.016",
    )
    assert "epochs" not in p  # omitted instead of the text None
    tags = run.tags
    assert {
        "arm": "NF+AGC",
        "role": "screen",
        "outcome": "complete",
        "mode": "full",
        "data": "d",
        "code": "c",
    }.items() <= tags.items()
    assert tags["config_id"]
    assert {"tables/history.parquet", "tables/history.csv", "result.json", "config.json"} <= set(
        store.artifacts(run.id)
    )


def test_curves_have_steps_epochs_and_samples_and_one_point_per_step(root):
    store = Store()
    run_id = log_training(store)
    for metric, values in (("val_acc", [0.7, 0.9]), ("epoch", [0.2, 0.4]), ("samples_seen", [128, 256])):
        points = client(store).get_metric_history(run_id, metric)
        assert [(m.step, m.value) for m in points] == list(zip((2, 4), values, strict=True)), metric


def test_numbers_that_are_not_finite_are_not_logged(root):
    store = Store()
    run_id = store.open_training(CONFIG, "k", "full", role="screen", arm="a", owner=None)
    store.log_metrics(run_id, {"a": math.inf, "b": math.nan, "c": 1.0})
    assert set(store.get(run_id).metrics) == {"c"}


@pytest.mark.parametrize(
    ("outcome", "reusable"), [("complete", True), ("collapsed", True), ("diverged", True), ("pruned", False)]
)
def test_complete_and_diverged_trainings_are_found_again(root, outcome, reusable):
    store = Store()
    run_id = log_training(store, outcome)
    training = store.find_training("k" * 64, "full")
    assert (training is not None) == reusable
    if reusable:
        assert training == (run_id, result(outcome))
    assert store.find_training("k" * 64, "quick") is None
    assert store.find_training("other", "full") is None


def test_a_failed_or_running_training_is_not_reused(root):
    store = Store()
    run_id = store.open_training(CONFIG, "k" * 64, "full", role="screen", arm="a", owner=None)
    assert store.find_training("k" * 64, "full") is None
    store.close(run_id, "FAILED")
    assert store.find_training("k" * 64, "full") is None


def test_a_training_lists_both_studies_that_use_it(root):
    store = Store()
    run_id = log_training(store)
    store.tag_study(run_id, "large_batch", "run-a")
    store.tag_study(run_id, "clipping_search", "run-b")
    tags = store.get(run_id).tags
    assert (tags["study.large_batch"], tags["study.clipping_search"]) == ("run-a", "run-b")


def test_runs_of_dead_processes_are_closed_and_runs_of_living_ones_stay(root):
    store = Store()
    living = store.open_training(CONFIG, "a", "full", role="screen", arm="a", owner=None)
    dead = store.open_training(CONFIG, "b", "quick", role="screen", arm="a", owner=None)
    store.set_tags(dead, process=whoami().replace("/" + whoami().split("/")[-2] + "/", "/999999/"))
    assert list(store.orphans()) == [dead]
    assert list(store.close_orphans()) == [dead]
    assert (store.status(living), store.status(dead)) == ("RUNNING", "KILLED")
    assert store.orphans() == {}


def test_runs_of_an_ended_notebook_are_closed(root):
    store = Store()
    run_id = store.open_training(CONFIG, "a", "full", role="screen", arm="a", owner="notebook-1")
    assert store.close_orphans(owner="notebook-2") == {}
    assert list(store.close_orphans(owner="notebook-1")) == [run_id]


def test_tables_are_stored_exactly(root):
    store = Store()
    run_id = log_training(store)
    table = pd.DataFrame({"a": [1.1, 2.2], "b": ["x", "y"]})
    store.log_table(run_id, table, "mine")
    folder = client(store).download_artifacts(run_id, "tables")
    pd.testing.assert_frame_equal(pd.read_parquet(f"{folder}/mine.parquet"), table)


def test_a_new_store_has_the_experiments_and_their_views(root):
    store = Store()
    experiments = {e.name: e for e in client(store).search_experiments()}
    assert {"studies", "trainings", "studies-quick", "trainings-quick"} <= set(experiments)
    assert experiments["trainings"].artifact_location == (root / "mlruns" / "artifacts" / "trainings").as_uri()
    views = {k.removeprefix("mlflow.sharedViewState.") for k in experiments["trainings"].tags if "sharedViewState" in k}
    assert views == {"leaderboard", "batch-size", "search", "failures", "seeds"}


def test_the_compare_address_names_the_runs(root):
    store = Store()
    run_id = log_training(store)
    url = store.compare_url([run_id], "trainings", "full")
    assert run_id in url and f"experiments=[%22{store.experiment_id('trainings', 'full')}%22]" in url
    assert '"' not in url and "#/compare-runs?runs=" in url  # the page requires this order


def test_a_store_file_that_is_not_a_database_is_refused_in_one_line(root):
    file = root / "mlruns" / "mlflow.db"
    file.write_bytes(b"this is not sqlite" * 100)
    with pytest.raises(WorkbenchError, match=f"cannot open .*{file}") as error:
        Store()
    assert len(str(error.value).splitlines()) == 1


def _open_a_new_store(folder):
    import os

    os.environ["WORKBENCH_ROOT"] = folder
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    Store()


def test_three_processes_can_make_one_store_at_once(tmp_path):
    (tmp_path / ".workbench").touch()
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_open_a_new_store, args=(str(tmp_path),)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 3
    with sqlite3.connect(tmp_path / "mlruns" / "mlflow.db") as db:
        assert db.execute("select count(*) from experiments where name = 'trainings'").fetchone() == (1,)


def test_a_failed_search_turns_the_garbage_collector_on_again(root):
    store = Store()
    with pytest.raises(MlflowException):
        store.search("trainings", "full", "not a filter")
    assert gc.isenabled()


def test_rows_that_are_logged_again_add_no_points(root):
    store = Store()
    run_id = store.open_training(CONFIG, "k", "full", role="screen", arm="a", owner=None)
    rows = [{"step": 1, "val_acc": 0.5, "time": 1e9}, {"step": 2, "val_acc": 0.6, "time": 1e9 + 1}]
    for batch in (rows[:1], rows):  # as if the answer to the first call was lost
        store.log_rows(run_id, batch)
    points = client(store).get_metric_history(run_id, "val_acc")
    assert [(p.step, p.value, p.timestamp) for p in points] == [(1, 0.5, 10**12), (2, 0.6, 10**12 + 1000)]
    assert set(store.get(run_id).metrics) == {"val_acc"}


def test_error_messages_hide_the_password(root):
    uri = "postgresql://me:secret@127.0.0.1:9/runs"
    assert without_password(uri) == "postgresql://me:***@127.0.0.1:9/runs"
    assert without_password("sqlite:////tmp/x.db") == "sqlite:////tmp/x.db"
    with pytest.raises(WorkbenchError, match=r"cannot open .*127\.0\.0\.1:9/runs") as error:
        Store(uri)
    assert "secret" not in str(error.value)


def test_the_ui_refuses_a_tracking_server_because_it_has_pages(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://store:5000")
    with pytest.raises(WorkbenchError, match="http://store:5000"):
        serve_ui("127.0.0.1", 5000, print)


def test_postgresql_uses_the_driver_of_the_extra():
    assert with_driver("postgresql://me@host/runs") == "postgresql+psycopg2://me@host/runs"
    for uri in ("postgresql+psycopg://me@host/runs", "sqlite:////tmp/x.db", "http://host:5000"):
        assert with_driver(uri) == uri


KILLED = """
import os, sys
import mlflow.store.db.utils as utils
import workbench.lab.store.client as store
before = utils._upgrade_db

def killed(engine):  # the tables exist, and the migrations have begun
    with engine.begin() as connection:
        connection.exec_driver_sql("create table webhooks (id integer)")
    os._exit(9)

utils._upgrade_db = killed
store.Store()
"""


def test_a_process_that_is_killed_while_it_makes_the_database_leaves_no_broken_one(tmp_path, monkeypatch):
    """Regression test: the file had half of the tables, and no store could be opened again."""
    (tmp_path / ".workbench").touch()
    monkeypatch.setenv("WORKBENCH_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    process = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, env=os.environ.copy())
    assert process.returncode == 9, process.stderr[-1000:]
    runs = tmp_path / "mlruns"
    assert (runs / ".part-mlflow.db").exists() and not (runs / "mlflow.db").exists()
    store = Store()
    assert store.search("studies", "full") == []
    assert not list(runs.glob(".part-*"))
