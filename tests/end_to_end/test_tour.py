"""The tour, end to end: `./run study` without arguments in a fresh root.

Evidence: the output, and the store as a user sees it afterwards. All tests share one run of the three studies. The
first test runs the tour again.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import time

import pandas as pd
import pytest
from support.checkout import CHECKOUT
from support.mlflow_view import client

STUDIES = ["signal_propagation", "clipping_search", "large_batch"]


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """(root, output, seconds) of the first tour, in a root that had no store."""
    root = tmp_path_factory.mktemp("tour")
    (root / ".workbench").touch()
    for name in ("notebooks", "studies"):
        (root / name).symlink_to(CHECKOUT / name)
    return root, *study(root)


def study(root, *arguments):
    environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "WORKBENCH_CONTEXT")} | {
        "WORKBENCH_ROOT": str(root)
    }
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "workbench.cli", "study", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=CHECKOUT,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout, time.perf_counter() - started


@pytest.fixture
def store(tour, monkeypatch):
    monkeypatch.setenv("WORKBENCH_ROOT", str(tour[0]))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from workbench.lab import Store

    return Store()


def by_study(store):
    return {r.tags["study"]: r for r in store.search("studies", "quick")}


def test_a_second_tour_trains_nothing_and_takes_under_a_minute(tour, store):
    before = len(store.search("trainings", "quick"))
    output, seconds = study(tour[0])
    assert "Nothing to run" in output
    assert seconds < 60
    assert len(store.search("trainings", "quick")) == before
    assert len(store.search("studies", "quick")) == 3


def test_the_output_shows_the_plan_divergences_verdicts_and_the_address(tour):
    output = tour[1].replace("\n", " ")
    assert "3 to run, 0 reused; about" in output
    assert "diverged: NF, nf_resnet_tiny B64" in output
    for name in STUDIES:
        assert f"{name}: DEMO" in output
    assert "#/compare-runs?" in output


def test_all_three_studies_and_at_least_twelve_trainings_are_finished(store):
    runs = by_study(store)
    assert sorted(runs) == sorted(STUDIES)
    assert {r.status for r in runs.values()} == {"FINISHED"}
    trainings = store.search("trainings", "quick")
    assert len(trainings) >= 12
    assert {t.status for t in trainings} == {"FINISHED"}
    assert {t.tags["outcome"] for t in trainings} >= {"complete", "diverged"}
    assert not store.search("studies", "full") and not store.search("trainings", "full")


@pytest.mark.parametrize("name", STUDIES)
def test_a_run_has_its_report_figures_tables_verdict_and_origin(store, name):
    run = by_study(store)[name]
    files = store.artifacts(run.id)
    assert {
        "notebook/run.ipynb",
        "notebook/run.html",
        "environment.txt",
        f"figures/{name}.png",
        f"figures/{name}.svg",
    } <= set(files)
    assert any(f.startswith("tables/") and f.endswith(".parquet") for f in files)
    tags = run.tags
    assert tags["mlflow.note.content"].startswith("**DEMO**")
    assert tags["verdict"] in tags["mlflow.note.content"]
    assert {"effect", "effect_low", "effect_high", "effect_n"} & set(run.metrics)
    assert tags["mlflow.source.name"] == f"notebooks/{name}.ipynb"
    head = subprocess.run(
        ["git", "-C", str(CHECKOUT), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    assert tags.get("mlflow.source.git.commit", "") == head  # both are empty where git refuses to answer
    assert "torch==" in store.read_text(run.id, "environment.txt")
    if name != "signal_propagation":
        assert len(tags["data"]) == 16


@pytest.mark.parametrize("name", STUDIES)
def test_the_report_needs_no_network(store, name):
    page = store.read_text(by_study(store)[name].id, "notebook/run.html")
    assert "data:image/png;base64" in page and "DEMO" in page
    assert not [
        tag
        for tag in ('src="http', "src='http", '<link rel="stylesheet" href="http', "cdnjs.cloudflare")
        if tag in page
    ]


def test_the_stored_table_gives_the_same_verdict(store, tmp_path):
    from workbench.claims import large_batch

    run = by_study(store)["large_batch"]
    file = client(store).download_artifacts(run.id, "tables/table.parquet", str(tmp_path))
    assert large_batch.judge(pd.read_parquet(file)).headline == run.tags["verdict"]


def test_a_shared_training_is_tagged_with_both_studies(store):
    runs = by_study(store)
    shared = [
        t for t in store.search("trainings", "quick") if {"study.large_batch", "study.clipping_search"} <= set(t.tags)
    ]
    assert shared
    for training in shared:
        assert training.tags["study.large_batch"] == runs["large_batch"].id
        assert training.tags["study.clipping_search"] == runs["clipping_search"].id


def test_only_confirmation_trainings_read_the_test_split(store):
    for training in store.search("trainings", "quick"):
        assert ("test_acc" in training.metrics) == (
            training.tags["role"] == "confirm" and training.tags["outcome"] == "complete"
        )


def test_trainings_have_curves_without_repeated_points(tour):
    with sqlite3.connect(tour[0] / "mlruns" / "mlflow.db") as db:
        twice = db.execute(
            "select run_uuid, key, step, count(*) from metrics group by 1, 2, 3 having count(*) > 1"
        ).fetchall()
        curve = db.execute(
            "select max(n) from (select count(*) n from metrics where key = 'val_acc' group by run_uuid)"
        ).fetchone()[0]
        infinite = db.execute("select count(*) from metrics where abs(value) > 1e300 or is_nan").fetchone()[0]
    assert twice == []
    assert curve >= 4
    assert infinite == 0


def test_the_tour_makes_one_database_and_writes_only_to_mlruns(tour):
    root = tour[0]
    assert sorted(p.name for p in root.iterdir()) == [".workbench", "mlruns", "notebooks", "studies"]
    assert [p.name for p in root.rglob("mlflow.db")] == ["mlflow.db"]
    assert not list((CHECKOUT / "notebooks").glob("*.db")) and not (CHECKOUT / "notebooks" / "mlruns").exists()


def test_trainings_that_differ_only_in_the_seed_share_a_config_id(store):
    groups = {}
    for t in store.search("trainings", "quick"):
        groups.setdefault(t.tags["config_id"], []).append(t.parameters["seed"])
    assert any(len(set(seeds)) == 2 for seeds in groups.values())
    assert all(len(set(seeds)) == len(seeds) for seeds in groups.values())


def test_a_full_run_does_not_reuse_quick_trainings(tour, store):
    """Quick runs are demonstrations."""
    training = store.search("trainings", "quick")[0]
    assert store.find_training(training.tags["key"], "full") is None


@pytest.mark.slow
def test_a_changed_parameter_trains_only_the_arms_that_use_it(tour, tmp_path):
    """With another threshold, BN and NF are reused and NF+AGC trains again."""
    copy = tmp_path / "root"
    shutil.copytree(tour[0], copy, symlinks=True)
    with sqlite3.connect(copy / "mlruns" / "mlflow.db") as db:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            db.execute(f"update {table} set {column} = replace({column}, ?, ?)", (str(tour[0]), str(copy)))
    output, _ = study(copy, "large_batch", "--quick", "-p", "clip=0.02", "-p", "lrs=[0.4]")
    assert "2 trained, 4 reused" in output
