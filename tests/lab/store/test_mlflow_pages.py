"""A user of MLflow's pages renames, deletes, restores and edits. Evidence: the store keeps every result in sight."""

import pytest
from mlflow.exceptions import MlflowException
from support.mlflow_view import client
from support.store_runs import CONFIG, log_training, result

from workbench.lab import Store
from workbench.lab.compare import table
from workbench.lab.store.experiments import EXPERIMENTS, ROLE


def test_a_deleted_experiment_is_restored_with_one_line_and_its_runs_are_found(root, capsys):
    store = Store()
    run_id = log_training(store)
    for name in ("trainings", "studies"):
        client(store).delete_experiment(store.experiment_id(name, "full"))
    again = Store()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and {"trainings", "studies"} <= set(" ".join(lines).split())
    assert again.find_training("k" * 64, "full") == (run_id, result())
    assert len(table.from_store(again).rows) == 1
    Store()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("older", [False, True], ids=["tagged", "of an older version"])
def test_a_renamed_experiment_stays_in_use(root, older):
    store = Store()
    run_id, mlflow = log_training(store), client(store)
    if older:
        mlflow.delete_experiment_tag(store.experiment_id("trainings", "full"), ROLE)
    mlflow.rename_experiment(store.experiment_id("trainings", "full"), "my trainings")
    again = Store()
    assert again.experiment_id("trainings", "full") == store.experiment_id("trainings", "full")
    assert again.find_training("k" * 64, "full")[0] == run_id
    assert {e.name for e in mlflow.search_experiments()} == {*EXPERIMENTS, "Default", "my trainings"} - {"trainings"}


def test_an_experiment_deleted_for_good_is_made_again(root):
    store = Store()
    mlflow = client(store)
    mlflow.delete_experiment(store.experiment_id("trainings", "full"))
    mlflow._tracking_client.store._hard_delete_experiment(store.experiment_id("trainings", "full"))
    assert Store().search("trainings", "full") == []


def test_a_run_that_is_deleted_while_it_is_written_keeps_its_result(root, capsys):
    store = Store()
    run_id = store.open_training(CONFIG, "k" * 64, "full", role="screen", arm="a", owner=None)
    client(store).delete_run(run_id)
    store.log_rows(run_id, result().history)
    client(store).delete_run(run_id)
    store.finish_training(run_id, result())
    client(store).delete_run(run_id)
    store.close(run_id, "FINISHED")
    assert store.find_training("k" * 64, "full") == (run_id, result())
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(run_id in line for line in lines)


def test_an_experiment_that_is_deleted_in_between_takes_new_runs(root):
    store = Store()
    first = log_training(store)
    client(store).delete_experiment(store.experiment_id("trainings", "full"))
    second = log_training(store, key="b" * 64)
    assert {run.id for run in store.search("trainings", "full")} == {first, second}


def test_a_run_deleted_for_good_is_an_error(root):
    store = Store()
    run_id = log_training(store)
    client(store).delete_run(run_id)
    client(store)._tracking_client.store._hard_delete_run(run_id)
    assert not store.is_kept(run_id)
    with pytest.raises(MlflowException, match=run_id):
        store.set_tags(run_id, mine="x")


def test_edited_tags_and_names_lose_no_result(root, command):
    """A run whose key now names another training must not be taken for it."""
    store = Store()
    run_id, mlflow = log_training(store), client(store)
    mlflow.update_run(run_id, name="renamed")
    for tag in ("arm", "role", "mode", "config_id", "configuration", "mlflow.note.content", "process"):
        mlflow.delete_tag(run_id, tag)
    assert store.find_training("k" * 64, "full") == (run_id, result())
    assert command("compare")[0] == 0 and command("diff", run_id, log_training(store, key="b" * 64))[0] == 0
    store.set_tags(run_id, key="c" * 64)
    assert store.find_training("c" * 64, "full") is None
    store.set_tags(run_id, outcome="superb")
    assert store.find_training("k" * 64, "full") is None
    assert command("compare")[0] == 0 and command("doctor")[0] == 1
    assert command("doctor", "--fix")[0] == 0
    assert store.find_training("k" * 64, "full") == (run_id, result())


def test_the_newest_of_a_restored_run_and_its_repetition_counts(root):
    store = Store()
    first = log_training(store)
    client(store).delete_run(first)
    assert store.find_training("k" * 64, "full") is None
    second = log_training(store)
    client(store).restore_run(first)
    assert store.find_training("k" * 64, "full")[0] == second
    assert list(table.from_store(store).rows.run_id) == [second]


def test_a_run_that_somebody_else_made_in_an_experiment_of_the_store_is_left_alone(root, command):
    store = Store()
    log_training(store)
    mlflow = client(store)
    foreign = mlflow.create_run(store.experiment_id("trainings", "full"), run_name="by hand").info.run_id
    mlflow.set_terminated(foreign, "FINISHED")
    assert command("compare")[0] == command("doctor", "--fix")[0] == 0
    assert store.status(foreign) == "FINISHED"


@pytest.mark.parametrize("process", ["nonsense", "a/b/c/d", "host/1/2", "", "//", "1/2/3/4/5/x"])
def test_a_running_run_whose_process_is_nonsense_counts_as_ended(root, command, process):
    store = Store()
    run_id = store.open_training(CONFIG, "k" * 64, "full", role="screen", arm="a", owner=None)
    store.set_tags(run_id, process=process)
    assert list(store.orphans()) == [run_id]
    code, output, _ = command("doctor", "--fix")
    assert code == 0 and run_id in output and store.status(run_id) == "KILLED"
