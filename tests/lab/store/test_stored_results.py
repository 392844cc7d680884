"""Damaged results of finished trainings. Evidence: each damage is written by hand, then every reader meets it."""

import json

import pytest
from support.store_runs import CONFIG, log_training, result

from workbench.errors import WorkbenchError
from workbench.lab import Store
from workbench.lab.compare import selection, table
from workbench.lab.store.stored_results import DamagedResult, parse_result

WHOLE = result().to_json()
CHANGED = {
    name: json.dumps(json.loads(WHOLE) | {name.strip(): value})
    for name, value in {
        "config": [],
        "history": [{"val_acc": 0.5}],
        "history ": [{"step": 2, "samples_seen": "many"}],
        "metrics": {"val_acc": "high"},
        "outcome": None,
        "key": 7,
        "versions": {"torch": 2},
    }.items()
}
DAMAGES = {
    "empty": b"",
    "cut": WHOLE[:200].encode(),
    "no fields": b"{}",
    "a list": b"[]",
    "null": b"null",
    "random bytes": bytes(range(255, 100, -1)),
    "nested": b"[" * 100_000,
    "no text": WHOLE.replace('"code": "c"', '"code": "\\ud800"').encode(),
    "a huge number": WHOLE.replace('"step": 2', '"step": ' + "9" * 30).encode(),
    **{f"other {name}": text.encode() for name, text in CHANGED.items()},
}


@pytest.fixture(params=DAMAGES)
def damaged(root, request):
    """The id of a training whose result is damaged."""
    run_id = log_training(Store())
    file(root, run_id).write_bytes(DAMAGES[request.param])
    return run_id


def file(root, run_id, name="result.json"):
    return root / "mlruns" / "artifacts" / "trainings" / run_id / "artifacts" / name


def test_every_reader_of_a_damaged_result_names_its_run_in_one_sentence(damaged, command, capsys):
    store = Store()
    other = log_training(store, key="b" * 64)
    commands = (("replay", damaged), ("diff", damaged, other), ("compare", "--equal", "samples"))
    for arguments in commands:
        code, _, errors = command(*arguments)
        assert code == 2 and damaged in errors and "Traceback" not in errors and len(errors.splitlines()) == 1
    assert store.find_training("k" * 64, "full") is None
    assert damaged in capsys.readouterr().err


def test_the_doctor_sets_a_damaged_training_aside_and_the_next_one_counts(damaged, command):
    code, output, _ = command("doctor")
    assert code == 1 and damaged in output
    assert command("doctor", "--fix")[0] == 0
    store = Store()
    assert store.status(damaged) == "FAILED" and store.get(damaged).tags["cause"]
    again = log_training(store)
    assert store.find_training("k" * 64, "full") == (again, result())
    assert command("doctor")[0] == 0


def test_a_whole_result_is_read_as_it_was_written():
    assert parse_result(WHOLE, "r").as_train_result() == result()
    diverged = result("diverged", cause="x")
    diverged.metrics["train_loss"] = float("inf")
    text = parse_result(diverged.to_json(), "r").as_train_result().to_json()
    assert text == diverged.to_json()
    with pytest.raises(DamagedResult):
        parse_result("", "r")


def test_the_end_of_an_older_training_is_judged_again():
    """An older version called this complete. Its loss at the end is above 0.95 ln 10 = 2.187."""
    older = result()
    older.history[-1]["val_loss"] = 2.2
    del older.metrics["classes"]  # the data set's name gives their number
    read = parse_result(older.to_json(), "r").as_train_result()
    assert (read.outcome, read.metrics["failed"], read.metrics["classes"]) == ("collapsed", 1, 10)
    older.history[-1]["val_loss"] = 2.1
    older.metrics["failed"] = 1  # slow is not failed
    read = parse_result(older.to_json(), "r").as_train_result()
    assert (read.outcome, read.metrics["failed"], read.cause) == ("complete", 0, None)


@pytest.mark.parametrize(("classes", "data"), [(float("inf"), "cifar10"), (None, ["cifar10"])])
def test_an_end_whose_classes_are_unknown_stays_as_it_is(classes, data):
    older = json.loads(result().to_json())
    older["metrics"]["classes"], older["config"]["data"] = classes, data
    older["history"][-1]["val_loss"] = 2.2
    assert parse_result(json.dumps(older), "r").outcome == "complete"


def test_a_comparison_needs_no_config_json(root):
    store = Store()
    run_id = log_training(store)
    before = selection.configuration(store, run_id)
    file(root, run_id, "config.json").unlink()
    assert selection.configuration(store, run_id) == before
    assert before["batch_size"] == CONFIG.batch_size


@pytest.mark.parametrize("content", [b"", b"PAR1", bytes(range(200))])
def test_a_damaged_table_is_reported_in_one_sentence_and_set_aside(root, command, content):
    store = Store()
    run_id = log_training(store)
    file(root, run_id, "tables/history.parquet").write_bytes(content)
    with pytest.raises(WorkbenchError, match=f"{run_id}.*history"):
        store.read_table(run_id, "history")
    code, output, _ = command("doctor", "--fix")
    assert code == 0 and run_id in output and "history.parquet" in output
    assert store.status(run_id) == "FAILED"


def test_curves_with_whole_numbers_truth_values_and_gaps_are_compared(root):
    store = Store()
    for key, rows in {"a": [True, 128], "b": [None, 10**15], "c": [64, 256]}.items():
        history = [{"step": i, "samples_seen": n, "val_acc": 0.5} for i, n in enumerate(rows)]
        run_id = log_training(store, key=key * 64)
        file(root, run_id).write_text(json.dumps(json.loads(WHOLE) | {"history": history}))
    assert table.from_store(store, equal="samples").rows.accuracy.tolist() == [0.5]
