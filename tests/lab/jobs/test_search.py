"""Searches. Evidence: a search that is interrupted and resumed anywhere equals an undisturbed one, bit for bit."""

import contextlib
import math
import signal
import sqlite3
import subprocess
import sys

import optuna
import pandas as pd
import pytest
from support.mlflow_view import client
from support.searches import BASE, SPACE, objective, session

from workbench.errors import WorkbenchError
from workbench.lab import Range, Store, search
from workbench.lab.jobs.search import SearchResult, abandoned_trials
from workbench.training import worker_task


def run(root, trials=6, **kwargs):
    return search(objective, SPACE, trials=trials, session=session(root), **kwargs)


def points(result):
    return result.trials[["clip", "base_lr", "val_acc", "outcome"]].values.tolist()


def test_each_trial_of_a_search_is_a_row_and_a_run_of_the_store(root):
    result = run(root, start=[{"clip": 0.01, "base_lr": 1.0}])
    assert len(result.trials) == 6
    assert (result.trials["clip"][0], result.trials.base_lr[0]) == (0.01, 1.0)
    runs = {r.id: r for r in Store().search("trainings", "full")}
    for row in result.trials.itertuples():
        assert runs[row.run_id].tags["role"] == "search"
        assert runs[row.run_id].status == "FINISHED"  # pruned trials too
    assert result.best is None or result.best.outcome == "complete"
    assert (root / "mlruns" / "optuna.db").is_file()


def test_the_best_trial_is_complete_and_neither_collapsed_nor_pruned():
    trials = pd.DataFrame({"outcome": ["complete", "collapsed", "pruned", "complete"], "val_acc": [0.3, 0.9, 0.9, 0.4]})
    assert SearchResult(trials, {}).best.name == 3
    assert SearchResult(trials[1:3], {}).best is None


def test_a_collapsed_trial_is_infeasible(root):
    """At this rate no network moves. The sampler knows the trial by its constraint."""
    still = lambda point: BASE.replace(base_lr=1e-12 * point["base_lr"])
    result = search(still, SPACE, trials=2, session=session(root))
    assert list(result.trials.outcome) == ["collapsed"] * 2 and list(result.trials.state) == ["COMPLETE"] * 2
    with contextlib.closing(sqlite3.connect(root / "mlruns" / "optuna.db")) as db:
        texts = [
            row[0] for row in db.execute("select value_json from trial_system_attributes where key like '%onstraint%'")
        ]
    assert texts and all("1.0" in text and "-1.0" not in text for text in texts)


def test_a_finished_search_is_not_repeated_and_a_longer_one_continues(root, monkeypatch):
    first = run(root, trials=4)
    trained = []
    original = worker_task.train
    monkeypatch.setattr(worker_task, "train", lambda *a, **k: trained.append(1) or original(*a, **k))
    assert points(run(root, trials=4)) == points(first)
    assert not trained
    longer = run(root, trials=6)
    assert points(longer)[:4] == points(first)
    assert len(trained) == 2


def test_a_killed_trial_frees_its_slot_and_parameters(root, monkeypatch, another_root):
    start = [{"clip": 0.01, "base_lr": 1.0}]
    undisturbed = points(run(root, start=start))

    other = another_root()
    original = worker_task.train
    count = 0

    def breaks_sometimes(*args, **kwargs):
        nonlocal count
        count += 1
        if count in (1, 3, 6, 7):
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(worker_task, "train", breaks_sometimes)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            run(other, start=start)
    assert points(run(other, start=start)) == undisturbed


def test_trials_whose_runs_were_deleted_are_trained_again_to_the_same_results(root, monkeypatch):
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: trial.number == 1)
    undisturbed = run(root, trials=3).trials
    assert list(undisturbed.state) == ["COMPLETE", "PRUNED", "COMPLETE"]
    for run_id in undisturbed.run_id[:2]:
        client(Store()).delete_run(run_id)
    again = run(root, trials=3).trials
    same = [name for name in undisturbed if name not in ("run_id", "device_seconds", "images_per_second")]
    pd.testing.assert_frame_equal(again[same], undisturbed[same])
    assert list(again.run_id != undisturbed.run_id) == [True, True, False]
    assert {r.id for r in Store().search("trainings", "full")} == set(again.run_id)
    assert list(run(root, trials=3).trials.run_id) == list(again.run_id)


def test_a_search_whose_runs_are_in_another_store_trains_its_trials_again(root, monkeypatch, tmp_path):
    first = run(root, trials=2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    again = run(root, trials=2)
    assert points(again) == points(first)
    assert {r.id for r in Store().search("trainings", "full")} == set(again.trials.run_id)


def test_no_point_is_suggested_twice(root):
    trials = run(root, trials=8).trials
    assert not trials.duplicated(["clip", "base_lr"]).any()


def test_a_diverged_trial_violates_the_constraint_and_is_never_the_best(root):
    space = {"base_lr": {"low": 1.0, "high": 1e7, "log": True}}
    result = search(
        lambda p: BASE.replace(clip=None, warmup=0.0, **p), space, trials=6, session=session(root), arm="NF"
    )
    assert (result.trials.outcome == "diverged").any()
    assert result.best is None or result.best.outcome == "complete"
    study = optuna.load_study(
        study_name=optuna.get_all_study_names(f"sqlite:///{root}/mlruns/optuna.db")[0],
        storage=f"sqlite:///{root}/mlruns/optuna.db",
    )
    for trial, outcome in zip(study.trials, result.trials.outcome, strict=True):
        if outcome != "pruned":
            assert (max(trial.constraints.values()) > 0) == (outcome == "diverged")
            assert trial.value is not None and math.isfinite(trial.value)


def test_a_number_in_the_space_is_fixed(root):
    result = search(objective, {"clip": 0.05, "base_lr": SPACE["base_lr"]}, trials=2, session=session(root))
    assert set(result.trials["clip"]) == {0.05}


@pytest.mark.parametrize(("low", "high", "log"), [(1.0, 1.0, False), (2.0, 1.0, False), (0.0, 1.0, True)])
def test_impossible_ranges_are_refused(low, high, log):
    with pytest.raises(WorkbenchError, match="low"):
        Range(low, high, log)


def test_zero_trials_are_refused(root):
    with pytest.raises(WorkbenchError, match=r"`trials`.*0"):
        run(root, trials=0)


@pytest.mark.parametrize("uri", ["nonsense://x", "postgresql://me:secret@127.0.0.1:9/x"])
def test_an_unreachable_database_is_refused_without_its_password(root, monkeypatch, uri):
    monkeypatch.setenv("WORKBENCH_OPTUNA_STORAGE", uri)
    with pytest.raises(WorkbenchError, match=r"database.*WORKBENCH_OPTUNA_STORAGE") as error:
        run(root)
    assert "secret" not in str(error.value)


def test_a_start_with_an_unknown_parameter_is_refused(root):
    with pytest.raises(WorkbenchError, match=r"`start` 'lr'.*'base_lr'"):
        search(objective, SPACE, trials=1, session=session(root), start=[{"lr": 0.4}])


KILLED = """
import os, signal, sys
from sqlalchemy import Engine, event

left = int(sys.argv[1])

@event.listens_for(Engine, "before_cursor_execute")
def killed(connection, cursor, statement, *_):
    global left
    left -= statement.strip().upper().startswith("CREATE")
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

from workbench.lab.jobs.search import abandoned_trials, _storage
_storage()
"""


@pytest.mark.parametrize("statements", [1, 2, 7])
def test_a_kill_during_the_creation_of_the_tables_leaves_no_incomplete_database(root, statements):
    assert subprocess.run([sys.executable, "-c", KILLED, str(statements)]).returncode == -signal.SIGKILL
    assert not (root / "mlruns" / "optuna.db").exists()
    assert abandoned_trials() == []
    result = search(objective, SPACE, trials=1, session=session(root))
    assert len(result.trials) == 1
    with contextlib.closing(sqlite3.connect(root / "mlruns" / "optuna.db")) as database:
        indexes = {name for (name,) in database.execute("select name from sqlite_master where type = 'index'")}
    assert "ix_studies_study_name" in indexes  # without it a study could exist twice
