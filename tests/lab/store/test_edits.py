"""Trainings that somebody edits in MLflow. Evidence: each edit by hand, then the doctor and the comparison."""

import pytest
from mlflow.entities import Metric
from support.mlflow_view import client
from support.store_runs import log_training

from workbench.errors import WorkbenchError
from workbench.lab import Store
from workbench.lab.compare.table import from_store


@pytest.fixture
def edited(root):
    """A store with one training that is edited in the test, and its id."""
    store = Store()
    run_id = log_training(store)
    store.set_tags(run_id, process="gone/boot/999999/1")
    return store, run_id


EDITS = {
    "status": lambda pages, run: pages.update_run(run, status="FAILED"),
    "no end": lambda pages, run: pages.update_run(run, status="RUNNING"),
    "key": lambda pages, run: pages.set_tag(run, "key", "mine"),
    "no key": lambda pages, run: pages.delete_tag(run, "key"),
    "no configuration": lambda pages, run: pages.delete_tag(run, "config_id"),
    "mode": lambda pages, run: pages.set_tag(run, "mode", "quick"),
    "outcome": lambda pages, run: pages.set_tag(run, "outcome", "great"),
    "metric": lambda pages, run: pages.log_metric(run, "val_acc", 0.99, step=9),
    "metric at the same step": lambda pages, run: pages.log_metric(run, "val_acc", 0.99, step=4),
    "metric far away": lambda pages, run: pages.log_batch(run, [Metric("val_acc", 1e300, 0, 2**40)]),
    "all": lambda pages, run: [EDITS[name](pages, run) for name in EDITS if name not in ("all", "no key")],
}


def seen(store, run_id):
    run = store.get(run_id)
    points = [(p.step, p.value) for p in client(store).get_metric_history(run_id, "val_acc")]
    return run.status, run.tags, run.metrics, points


@pytest.mark.parametrize("edit", EDITS)
def test_the_doctor_names_an_edit_and_undoes_it(edited, command, edit):
    store, run_id = edited
    whole = seen(store, run_id)
    EDITS[edit](client(store), run_id)
    assert seen(store, run_id) != whole
    code, out, _ = command("doctor")
    assert code == 1 and run_id in out and seen(store, run_id) != whole
    assert command("doctor", "--fix")[0] == 0
    assert seen(store, run_id) == whole
    assert command("doctor")[0] == 0
    assert store.find_training("k" * 64, "full")[0] == run_id


def test_a_second_run_of_a_training_is_not_finished_again(edited, command):
    store, run_id = edited
    other = log_training(store)
    client(store).update_run(other, status="FAILED")
    assert command("doctor", "--fix")[0] == 0
    assert (store.status(run_id), store.status(other)) == ("FINISHED", "FAILED")


def test_a_training_that_was_set_aside_stays_so(edited, command, root):
    store, run_id = edited
    (root / "mlruns/artifacts/trainings" / run_id / "artifacts/tables/history.parquet").write_bytes(b"")
    assert command("doctor", "--fix")[0] == 0 and store.status(run_id) == "FAILED"
    assert command("doctor")[0] == 0 and store.status(run_id) == "FAILED"


def test_a_comparison_names_trainings_in_the_trash(edited):
    store, run_id = edited
    other = log_training(store, key="j" * 64)
    client(store).delete_run(run_id)
    assert any(run_id[:8] in note and other[:8] not in note for note in from_store(store).notes)
    client(store).delete_run(other)
    with pytest.raises(WorkbenchError, match=f"(?s)(?=.*{run_id[:8]})(?=.*{other[:8]})"):
        from_store(store)


def test_a_run_that_a_user_made_is_left_out_and_counted(edited):
    store, run_id = edited
    pages = client(store)
    made = pages.create_run(store.experiment_id("trainings", "full"), tags={"outcome": "complete", "key": "mine"})
    pages.log_metric(made.info.run_id, "val_acc", 0.99)
    pages.set_terminated(made.info.run_id)
    comparison = from_store(store)
    assert comparison.rows.run_id.tolist() == [run_id]
    assert any("left out: 1 " in note for note in comparison.notes)
