"""Lines and files of results from outside. Evidence: one field changed at a time; pipes, links and devices."""

import io
import json
import os
import subprocess
import tarfile
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from support.detached import TINY

from workbench.errors import WorkbenchError
from workbench.files import sha256
from workbench.lab import Store
from workbench.lab.jobs import import_results as import_module
from workbench.lab.jobs.import_results import import_results
from workbench.training import TrainResult, training_key
from workbench.training.detached import tables, transport
from workbench.training.detached.plan import read_plan
from workbench.training.detached.records import Record, read_records
from workbench.training.detached.tables import NUMBERS, table_file

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


# ---- tables


def folder_with_table(tmp_path, write, name="signal"):
    """Make a folder of results whose first training has a table."""
    (folder := tmp_path / "out").mkdir()
    values = json.loads(line())
    file = table_file(folder, values["key"], name)
    file.parent.mkdir(parents=True)
    write(file)
    (folder / "results.jsonl").write_text(json.dumps(values | {"tables": {name: sha256(file)}}) + "\n")
    return folder


def pointed(file):
    pd.DataFrame({"step": [1]}).to_parquet(file.with_name("there"))
    file.symlink_to(file.with_name("there"))


WRONG_TABLES = {
    "no table": lambda file: file.write_bytes(b"nothing"),
    "other columns": lambda file: pd.DataFrame({"step": [1]}).to_parquet(file),
    "texts": lambda file: pd.DataFrame({name: ["a"] for name in NUMBERS["signal"]}).to_parquet(file),
    "too large": lambda file: pd.DataFrame({name: np.zeros(100) for name in NUMBERS["signal"]}).to_parquet(file),
    "a link": pointed,
}


@pytest.mark.parametrize("damage", WRONG_TABLES)
def test_a_wrong_table_is_named_before_any_run_opens(root, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(tables, "CELLS", 500)
    folder = folder_with_table(tmp_path, WRONG_TABLES[damage])
    store = Store()
    monkeypatch.setattr(store, "open_training", lambda *args, **kwargs: pytest.fail("a run was opened"))
    (damaged,) = import_results(folder, store).damaged
    assert "signal.parquet" in damaged and len(damaged) < 600


def test_the_tables_of_all_lines_are_read_before_the_first_run_opens(root, tmp_path, monkeypatch):
    folder = folder_with_table(tmp_path, WRONG_TABLES["no table"])
    other = json.loads(line()) | {"key": "0" * 64}
    with open(folder / "results.jsonl", "a") as file:
        file.write(json.dumps(other) + "\n")
    store, order = Store(), []
    read, opened = import_module.tables_of, store.open_training
    monkeypatch.setattr(import_module, "tables_of", lambda *a: (order.append("read"), read(*a))[1])
    monkeypatch.setattr(store, "open_training", lambda *a, **k: (order.append("open"), opened(*a, **k))[1])
    imported = import_results(folder, store)
    assert len(imported.runs) == len(imported.damaged) == 1
    assert order == ["read", "read", "read", "open"]


@pytest.mark.parametrize("name", ["signal", "curvature", "agc"])
def test_a_table_without_rows_is_imported(root, tmp_path, name):
    folder = folder_with_table(tmp_path, lambda file: pd.DataFrame(columns=["step"]).to_parquet(file), name)
    assert len(import_results(folder, Store()).runs) == 1


# ---- tars


def tar_of(tmp_path, *members):
    file = tmp_path / "out.tar"
    with tarfile.open(file, "w") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return file


def member(name, content=b""):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def sparse_tar(tmp_path):
    """A tar of some kilobytes with a member of 100 GB, as GNU tar writes files with holes."""
    with open(tmp_path / "results.jsonl", "wb") as hole:
        hole.truncate(100 * 10**9)
    subprocess.run(["tar", "--sparse", "-cf", "out.tar", "results.jsonl"], cwd=tmp_path, check=True)
    os.unlink(tmp_path / "results.jsonl")
    return tmp_path / "out.tar"


def test_a_tar_with_a_huge_sparse_member_is_refused(root, tmp_path):
    file = sparse_tar(tmp_path)
    assert file.stat().st_size < 10**6
    with pytest.raises(WorkbenchError, match=r"out\.tar"):
        import_results(file, Store())


def test_a_tar_with_too_many_members_is_refused(root, tmp_path, monkeypatch):
    monkeypatch.setattr(transport, "MEMBERS", 3)
    whole = [member("out/results.jsonl", (line() + "\n").encode())]
    assert len(import_results(tar_of(tmp_path, *whole, *[member(f"out/{i}") for i in range(2)]), Store()).runs) == 1
    with pytest.raises(WorkbenchError, match=r"out\.tar.*3"):
        import_results(tar_of(tmp_path, *whole, *[member(f"out/{i}") for i in range(3)]), Store())


def test_a_tar_that_does_not_fit_on_the_disk_is_refused_with_both_sizes(root, tmp_path, monkeypatch):
    content = (line() + "\n").encode()
    monkeypatch.setattr(transport.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(WorkbenchError, match=rf"out\.tar.*10 bytes.*{len(content):,}"):
        import_results(tar_of(tmp_path, member("out/results.jsonl", content)), Store())


@pytest.mark.parametrize("name", ["out/" + "n" * 5000 + ".jsonl", "../out/results.jsonl", "/out/results.jsonl"])
def test_a_tar_with_a_member_that_cannot_be_unpacked_is_refused(root, tmp_path, name):
    file = tar_of(tmp_path, member("out/results.jsonl", (line() + "\n").encode()), member(name))
    with pytest.raises(WorkbenchError, match=r"out\.tar") as caught:
        import_results(file, Store())
    assert len(str(caught.value)) < 8000
