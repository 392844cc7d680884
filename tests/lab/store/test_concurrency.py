"""Tests of many processes on one sqlite file, as when several studies with several workers run at once.

Evidence: real processes open the store, write and search together behind one gate. Then every run, point and trial is
counted.
"""

import multiprocessing
import os
import sqlite3
import time

import pytest
from support.searches import SPACE, objective, session
from support.store_runs import CONFIG, result

from workbench.lab import Store, search

ROWS = 20  # of a training's history, logged in two calls
COLUMNS = ("epoch", "samples_seen", "lr", "train_loss", "val_loss", "val_acc")


def rows(writer, steps):
    return [dict.fromkeys(COLUMNS, float(writer)) | {"step": step} for step in steps]


def write(root, writer, trainings, gate, errors):
    os.environ["WORKBENCH_ROOT"] = str(root)
    try:
        gate.wait(300)
        store = Store()
        for i in range(trainings):
            key = f"{writer:02}-{i}".ljust(64, "k")
            run_id = store.open_training(CONFIG, key, "full", role="screen", arm=str(writer), owner=None)
            store.log_rows(run_id, rows(writer, range(1, ROWS // 2)))
            store.log_rows(run_id, rows(writer, range(ROWS // 2, ROWS + 1)))
            store.finish_training(run_id, result())
            store.tag_study(run_id, "mine", "run")
    except BaseException as error:
        errors.put(f"writer {writer}: {type(error).__name__}: {error}")


def read(root, gate, over, errors):
    os.environ["WORKBENCH_ROOT"] = str(root)
    try:
        gate.wait(300)
        store = Store()
        while not over.is_set():
            store.search("trainings", "full", "attributes.status = 'FINISHED'")
            store.orphans()
            time.sleep(0.05)
    except BaseException as error:
        errors.put(f"reader: {type(error).__name__}: {error}")


@pytest.fixture
def processes():
    """A context for processes that have already imported the workbench."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["workbench.lab.store.client", "workbench.models.zoo", "mlflow.store.tracking.sqlalchemy_store"]
    )
    return context


def messages_of(errors):
    messages = []
    while not errors.empty():
        messages.append(errors.get())
    return messages


@pytest.mark.parametrize(
    ("writers", "trainings"), [(6, 2), pytest.param(16, 6, marks=pytest.mark.slow, id="sixteen writers")]
)
def test_writers_and_readers_of_one_store_lose_nothing_and_do_not_fail(root, processes, writers, trainings):
    readers, errors, over = 2, processes.Queue(), processes.Event()
    gate = processes.Barrier(writers + readers)
    writing = [processes.Process(target=write, args=(root, w, trainings, gate, errors)) for w in range(writers)]
    reading = [processes.Process(target=read, args=(root, gate, over, errors)) for _ in range(readers)]
    for process in (*writing, *reading):
        process.start()
    for process in writing:
        process.join(600)
    over.set()
    for process in reading:
        process.join(60)
    assert messages_of(errors) == []
    assert [process.exitcode for process in (*writing, *reading)] == [0] * (writers + readers)

    runs = Store().search("trainings", "full")
    assert len({run.tags["key"] for run in runs}) == len(runs) == writers * trainings
    for run in runs:
        assert run.status == "FINISHED" and run.tags["study.mine"] == "run"
        assert {name: run.metrics[name] for name in COLUMNS} == dict.fromkeys(COLUMNS, float(run.tags["arm"]))
    with sqlite3.connect(root / "mlruns" / "mlflow.db") as database:
        ((points, distinct),) = database.execute(
            "select count(*), count(distinct run_uuid || key || step) from metrics where key = 'train_loss'"
        )
    assert points == distinct == writers * trainings * ROWS


def run_search(root, seed, arm, gate, errors):
    os.environ["WORKBENCH_ROOT"] = str(root)
    try:
        import torch

        torch.set_num_threads(1)
        gate.wait(300)
        trials = search(objective, SPACE, trials=4, session=session(root), seed=seed, arm=arm).trials
        assert trials.trial.tolist() == [0, 1, 2, 3] and not trials.duplicated(["clip", "base_lr"]).any()
    except BaseException as error:
        errors.put(f"{arm}: {type(error).__name__}: {error}")


def test_two_searches_in_one_file_do_not_disturb_each_other(root, processes):
    errors, gate = processes.Queue(), processes.Barrier(2)
    searching = [
        processes.Process(target=run_search, args=(root, seed, f"arm {seed}", gate, errors)) for seed in (0, 1)
    ]
    for process in searching:
        process.start()
    for process in searching:
        process.join(300)
    assert messages_of(errors) == []
    with sqlite3.connect(root / "mlruns" / "optuna.db") as database:
        counts = database.execute("select state, count(*) from trials group by study_id, state").fetchall()
    assert sum(n for state, n in counts if state in ("COMPLETE", "PRUNED")) == 8
    assert {state for state, _ in counts} <= {"COMPLETE", "PRUNED"}
