"""Runs that somebody deletes for good in MLflow while they are in use.

Evidence: runs removed as `mlflow gc` does, at every point of a training and at the end of a notebook.
"""

import pytest
from support.messages import missing
from support.mlflow_view import client
from support.store_runs import CONFIG

from workbench.errors import WorkbenchError
from workbench.lab import Session, Store
from workbench.lab.jobs.job import Arm, Job
from workbench.lab.jobs.run_all import Progress, trained
from workbench.lab.store.shared_client import RunIsGone
from workbench.lab.studies import launcher
from workbench.lab.studies.notebook_process import NotebookEnd
from workbench.lab.studies.session import abandon_run


def delete_for_good(run_id):
    client(Store())._tracking_client.store._hard_delete_run(run_id)


def opened(store):
    return store.open_notebook("mine", "mine.ipynb", {}, "full", "mine", {})


CALLS = {
    "get": lambda store, run: store.get(run),
    "status": lambda store, run: store.status(run),
    "tags": lambda store, run: store.set_tags(run, a="b"),
    "metrics": lambda store, run: store.log_metrics(run, {"a": 1.0}),
    "text": lambda store, run: store.log_text(run, "a", "a.txt"),
    "read": lambda store, run: store.read_text(run, "a.txt"),
    "files": lambda store, run: store.artifacts(run),
    "close": lambda store, run: store.close(run, "FINISHED"),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_use_of_a_run_that_is_gone_names_it(root, call):
    store = Store()
    run_id = opened(store)
    delete_for_good(run_id)
    with pytest.raises(WorkbenchError, match=run_id) as caught:
        CALLS[call](store, run_id)
    assert isinstance(caught.value, RunIsGone)
    assert not store.has(run_id) and not store.is_kept(run_id)


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_notebook_without_a_run_ends_with_a_sentence_and_its_files_are_kept(root, status):
    store = Store()
    run_id = opened(store)
    delete_for_good(run_id)
    events = launcher._close(store, run_id, NotebookEnd(status, "why", {"run.html": "page", "run.ipynb": "{}"}))
    place = root / "mlruns" / "set-aside" / "studies" / run_id
    assert {file.name: file.read_text() for file in place.iterdir()} == {"run.html": "page", "run.ipynb": "{}"}
    assert [event["kind"] for event in events] == ["broken", "ended"] and events[1]["status"] == "FAILED"
    assert missing(events[0]["message"], [run_id, str(place)]) == []


@pytest.mark.parametrize("at", ["the first row", "the last row"])
def test_a_training_whose_run_is_gone_is_kept_in_a_new_run(root, at):
    store, deleted = Store(), []
    config = CONFIG.replace(steps=6, eval_every=2, telemetry_every=2, clip=0.04)

    def watch(row):
        if row["step"] == (2 if at == "the first row" else 6):
            (run,) = store.runs("trainings")
            delete_for_good(run.id)
            deleted.append(run.id)
        return False

    job = Job(Arm("NF", config), "screen", watch=watch)
    with Progress("trainings", 1) as progress:
        (result,) = trained([job], Session(store, "mine"), executor="inline", progress=progress)
    assert result.error is None and deleted and result.run_id not in deleted
    (run,) = store.runs("trainings")
    assert run.id == result.run_id and run.status == "FINISHED"
    assert "tables/agc.parquet" in store.artifacts(run.id)
    history = client(Store()).get_metric_history(run.id, "val_acc")
    assert [point.step for point in history] == [2, 4, 6]
    assert store.find_training(result.result.key, "full")[0] == run.id


def test_the_end_of_a_study_names_runs_that_are_gone(root, capsys):
    from workbench.cli.progress import show_results
    from workbench.cli.terminal import Terminal

    store = Store()
    gone, kept = opened(store), opened(store)
    store.close(kept, "FINISHED")
    delete_for_good(gone)
    assert show_results([gone, kept], store, Terminal(160)) is False
    out = capsys.readouterr().out
    assert gone[:8] in out and kept[:8] in out


def test_a_notebook_process_without_a_run_and_a_launcher_ends_quietly(root, monkeypatch):
    from workbench.lab.executors.context import Context

    run_id = opened(Store())
    for name, value in Context("mine", "full", "nobody", run_id).environment().items():
        monkeypatch.setenv(name, value)
    delete_for_good(run_id)
    abandon_run()
