"""Lines and files of results from outside. Evidence: one field changed at a time; pipes, links and devices."""

import json
import os

import pytest
from support.detached import TINY

from workbench.errors import WorkbenchError
from workbench.lab import Store
from workbench.lab.jobs.import_results import import_results
from workbench.training import TrainResult, training_key
from workbench.training.detached.plan import read_plan
from workbench.training.detached.records import Record, read_records

ROW = {"step": 1, "val_acc": 0.5}


def line(**changes):
    history = [{"step": 0, "val_acc": 0.5}]
    result = TrainResult(training_key(TINY, "d"), TINY, "complete", history, {"val_acc": 0.5}, data_digest="d")
    record = Record(result, "mine", "full", "screen", "a", None, 10.0, 20.0)
    return json.dumps(json.loads(record.to_json()) | changes)


def test_a_whole_line_passes_also_with_a_loss_that_is_not_finite():
    assert Record.from_json(line()).result.metrics == {"val_acc": 0.5}
    assert Record.from_json(line(history=[ROW | {"train_loss": float("inf")}])).result.history[0]["step"] == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("history", [ROW | {"a b?*": 1.0}]),
        ("history", [ROW | {"": 1.0}]),
        ("history", [ROW | {"../x": 1.0}]),
        ("history", [ROW | {"n" * 300: 1.0}]),
        ("history", [ROW | {"step": 2**62 * 2}]),
        ("history", [ROW | {"step": -1}]),
        ("history", [ROW | {"step": True}]),
        ("history", [ROW | {"step": 1.5}]),
        ("history", [ROW | {"val_acc": "x"}]),
        ("history", [ROW | {"val_acc": [1]}]),
        ("history", [[1]]),
        ("history", {"step": 1}),
        ("metrics", {"a/b": 1.0}),
        ("metrics", {"val_acc": None, "x": {}}),
        ("metrics", [1]),
        ("outcome", "done"),
        ("outcome", ["complete"]),
        ("started", float("nan")),
        ("ended", 1e300),
        ("seconds", "3"),
        ("arm", "a" * 10_000),
        ("owner", "a\0b"),
        ("versions", {"torch": 2}),
        ("tables", {"../x": "0"}),
        ("tables", ["agc"]),
        ("config", [1]),
        ("config", json.loads("[" * 60 + "]" * 60)),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(field, value):
    with pytest.raises(WorkbenchError) as caught:
        Record.from_json(line(**{field: value}))
    assert field in str(caught.value) or "step" in str(value) or "nest" in str(caught.value) or field == "config"
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "NaN", '{"key": ' + "9" * 5000 + "}", "\0"])
def test_a_line_that_is_no_bounded_json_is_refused(text):
    with pytest.raises(WorkbenchError):
        Record.from_json(text)


def test_no_wrong_line_opens_a_run_and_the_whole_lines_are_imported(root, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    wrong = line(history=[ROW | {"step": 2**63}])
    (folder / "results.jsonl").write_text("\n".join([wrong, "[" * 100_000, line()]) + "\n")
    store = Store()
    imported = import_results(folder, store)
    assert len(imported.runs) == 1 and [d.split(":")[0][-1] for d in imported.damaged] == ["1", "2"]
    assert len(store.search("trainings", "full", "")) == 1


@pytest.mark.parametrize("kind", ["pipe", "link", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(root, tmp_path, kind):
    (folder := tmp_path / "out").mkdir()
    file = folder / "results.jsonl"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        target = tmp_path / "there" if kind == "link" else "/dev/zero"
        (tmp_path / "there").write_text(line())
        file.symlink_to(target)
    for read in (lambda: import_results(folder, Store()), lambda: list(read_records(folder))):
        with pytest.raises(WorkbenchError, match=r"results\.jsonl"):
            read()
    if kind != "link":
        with pytest.raises(WorkbenchError, match=r"results\.jsonl"):
            read_plan(file)
