"""Imports of detached runs.

Evidence: a plan runs behind a wall that hides all packages a GPU node lacks, and is killed with -9 on the way. A study
here then finds all trainings finished, bit for bit as if they had run here.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pandas as pd
import pytest
from support.checkout import CHECKOUT
from support.detached import TINY, plain, processes_of, start, wait_for
from support.mlflow_view import client

from workbench.errors import WorkbenchError
from workbench.lab import Session, Store, run_all
from workbench.lab.jobs import run_all as trainings_module
from workbench.lab.jobs.import_results import import_results
from workbench.training import TrainConfig, TrainResult, train, training_key
from workbench.training.detached.plan import Planned, write_plan
from workbench.training.detached.records import Record, read_records
from workbench.training.detached.results import Results
from workbench.training.detached.tables import tables_of
from workbench.training.detached.transport import pack_folder

WALL = """
    import sys
    from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

    allowed = {*sys.stdlib_module_names, "workbench", "torch", "torchgen", "functorch", "numpy", "pandas", "pyarrow",
               "PIL", "safetensors", "tqdm"}
    # needed by torch
    allowed |= {"sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "filelock", "typing_extensions"}
    allowed |= {"dateutil", "pytz", "tzdata", "six"}  # needed by pandas


    class Wall(PathFinder):
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            if name.partition(".")[0] in allowed or name.startswith("_"):  # some standard modules are in no list
                return super().find_spec(name, path, target)


    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Wall]
"""


@pytest.fixture
def behind_the_wall(tmp_path):
    """Return an environment that hides from Python what a GPU node does not have."""
    (tmp_path / "wall").mkdir()
    (tmp_path / "wall" / "sitecustomize.py").write_text(textwrap.dedent(WALL))
    return {"PYTHONPATH": f"{tmp_path / 'wall'}:{CHECKOUT}"}


def one_finished_and_one_under_way(out):
    lines = (out / "results.jsonl").read_text() if (out / "results.jsonl").is_file() else ""
    return bool(lines) and any(step.parent.name not in lines for step in out.glob("checkpoints/*/step-*"))


def session(store):
    run_id = store.open_notebook("mine", "mine.ipynb", {}, "full", "mine", {})
    return Session(store, "mine", "full", run_id, by_hand=False)


@pytest.mark.slow
def test_a_plan_that_ran_elsewhere_and_was_killed_is_imported_completely(
    root,
    image_folder,
    tmp_path,
    behind_the_wall,
    monkeypatch,
    one_thread,
):
    base = TINY.replace(data=str(image_folder), progress=False, device="cpu")
    configs = [
        base,
        base.replace(seed=1),
        base.replace(seed=2),
        base.replace(clip=None, base_lr=4e5, telemetry_every=None),
    ]
    plan = write_plan(tmp_path / "plan.jsonl", [Planned.of(config, study="mine", arm="NF") for config in configs])
    out = tmp_path / "node-7"
    packages = ("mlflow", "optuna", "yaml", "scipy", "psutil")
    hidden = f"import importlib.util as u, sys; sys.exit(any(map(u.find_spec, {packages})))"
    subprocess.run([sys.executable, "-c", hidden], env=os.environ | behind_the_wall, check=True)

    running = start(plan, out, "--checkpoint-seconds", "0.3", env=behind_the_wall)
    wait_for(lambda: one_finished_and_one_under_way(out), running)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    wait_for(lambda: not processes_of(out))  # its worker ends too
    first = import_results(out, Store())
    assert 1 <= len(first.runs) < 4
    running = start(plan, out, "--pack", env=behind_the_wall)
    outputs = running.communicate()
    assert running.returncode == 0, outputs
    assert "1 half-done" in outputs[1]
    assert len(list(read_records(out))) == 4

    store = Store()
    second = import_results(out, store)
    assert (len(second.runs), second.known, second.damaged, second.failed) == (
        4 - len(first.runs),
        len(first.runs),
        [],
        [],
    )
    third = import_results(out.with_name("node-7.tar"), store)
    assert (third.runs, third.known) == ([], 4)

    with monkeypatch.context() as patch:
        patch.setattr(trainings_module, "train", lambda *args, **kwargs: pytest.fail("trained again"))
        trainings = run_all(configs, session(store))
    assert set(trainings.run_id) == {*first.runs, *second.runs}
    for config, run_id in zip(configs, trainings.run_id, strict=True):
        kept = TrainResult.from_json(store.read_text(run_id, "result.json"))
        assert plain(kept) == plain(train(config))


# ---- the imported run

CONFIG = TrainConfig(steps=4, batch_size=64, base_lr=1.6, clip=0.04, seed=2)

SIGNAL = pd.DataFrame(
    [
        {"step": s, "block": b, "var": 1.0, "mean_sq": 0.1, "residual_var": 0.5, "grad_var": 2.0}
        for s in (0, 4)
        for b in (0, 1)
    ]
)


def record(seed=2, outcome="complete", mode="full", cause=None, study="mine", owner="n" * 32):
    config = CONFIG.replace(seed=seed)
    history = [
        {"step": s, "epoch": s / 10, "samples_seen": 64 * s, "val_acc": 0.5 + s / 10, "seconds": 1.0} for s in (2, 4)
    ]
    metrics = {"val_acc": 0.9, "failed": 0, "steps_planned": 4, "steps_done": 4, "depth": 3, "n_params": 10}
    key = training_key(config, "d")
    result = TrainResult(key, config, outcome, history, metrics, cause, 9.0, "H200", {}, "d", code="another")
    return Record(result, study, mode, "confirm", "NF", owner, 1000.0, 1009.0)


def folder_with(tmp_path, *records, tables=None):
    results = Results(tmp_path / "node-7")
    for each in records:
        results.add(each, tables or {})
    results.close()
    return tmp_path / "node-7"


def test_an_imported_run_looks_like_a_local_one(root, tmp_path):
    folder = folder_with(
        tmp_path, record(), tables={"agc": pd.DataFrame({"step": [1, 2], "ratio": [0.1, 0.3]}), "signal": SIGNAL}
    )
    store = Store()
    (run_id,) = import_results(folder, store).runs
    run = store.get(run_id)
    assert (run.status, run.name) == ("FINISHED", "nf_resnet_tiny B64 lr0.4 c0.04 s2")
    assert (run.started, run.ended) == (1_000, 1_009)
    expected_tags = {"imported": "node-7", "device": "H200", "arm": "NF", "role": "confirm", "outcome": "complete"}
    expected_tags |= {"study.mine": "n" * 32, "owner": "n" * 32, "mode": "full", "code": "another", "data": "d"}
    assert expected_tags.items() <= run.tags.items()
    assert (run.parameters["clip"], run.parameters["steps"]) == ("0.04", "4")
    points = client(store).get_metric_history(run_id, "val_acc")
    assert [(p.step, p.value) for p in points] == [(2, 0.7), (4, 0.9)]  # each point once
    names = {f"tables/{name}.{suffix}" for name in ("history", "agc", "signal") for suffix in ("parquet", "csv")}
    assert names | {"result.json", "config.json", "figures/signal.png"} <= set(store.artifacts(run_id))
    assert store.find_training(record().result.key, "full") == (run_id, record().result)


def test_the_runs_of_a_quick_plan_are_quick_runs(root, tmp_path):
    store = Store()
    summary = import_results(folder_with(tmp_path, record(mode="quick", study=None, owner=None)), store)
    assert store.find_training(record().result.key, "full") is None
    assert store.find_training(record().result.key, "quick")[0] == summary.runs[0]
    assert not any(tag.startswith("study.") or tag == "owner" for tag in store.get(summary.runs[0]).tags)


def test_a_damaged_line_is_reported_and_the_others_are_imported(root, tmp_path):
    folder = folder_with(tmp_path, record(1), record(2), record(3))
    file = folder / "results.jsonl"
    lines = file.read_text().splitlines()
    file.write_text(f"{lines[0]}\n{lines[1][:80]}\n\n{lines[2]}\n")
    summary = import_results(folder, Store())
    assert len(summary.runs) == 2
    assert len(summary.damaged) == 1 and summary.damaged[0].startswith("results.jsonl, line 2: ")
    assert str(summary) == "2 imported, 0 known already, 1 damaged"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key": "../../" + "0" * 58}, ["key", "64 hex digits"]),
        ({"key": "' or '1'='1"}, ["key", "64 hex digits"]),
        ({"mode": "fast"}, ["mode", "'fast'"]),
        ({"study": "a/../b"}, ["study", "a/../b"]),
        ({"history": [{"val_acc": 1.0}]}, ["`step`"]),
        ({"history": [5]}, ["results.jsonl, line 1"]),
        ({"config": {"cilp": 0.1}}, ["TrainConfig", "'cilp'"]),
        ({"started": None}, ["results.jsonl, line 1"]),
        ({"colour": "red"}, ["results.jsonl, line 1"]),
        ({"tables": {"../secret": "0"}}, ["../secret"]),
    ],
)
def test_a_line_that_is_not_a_result_is_refused(root, tmp_path, change, words):
    folder = folder_with(tmp_path, record())
    values = json.loads((folder / "results.jsonl").read_text())
    (folder / "results.jsonl").write_text(json.dumps(values | change) + "\n")
    summary = import_results(folder, Store())
    assert summary.runs == [] and all(word in summary.damaged[0] for word in words), summary.damaged


def test_a_line_changed_by_hand_is_refused(root, tmp_path):
    """The key of a changed line does not match its configuration. Only results of the same code can be checked."""
    from workbench.training import code_hash

    folder = folder_with(tmp_path, record())
    values = json.loads((folder / "results.jsonl").read_text()) | {"code": code_hash()}
    (folder / "results.jsonl").write_text(json.dumps(values) + "\n")
    store = Store()
    assert len(import_results(folder, store).runs) == 1
    values["key"], values["config"]["clip"] = record(3).result.key, 0.01
    (folder / "results.jsonl").write_text(json.dumps(values) + "\n")
    assert f"key {record(3).result.key[:12]}" in import_results(folder, store).damaged[0]


def test_a_training_that_failed_on_the_node_is_reported_without_a_run(root, tmp_path):
    memory = "OutOfMemoryError: 90 GiB"
    folder = folder_with(tmp_path, record(1, "failed", cause=memory), record(2, "failed", cause=memory), record(1))
    store = Store()
    summary = import_results(folder, store)
    assert len(summary.runs) == 1
    assert summary.failed == [f"nf_resnet_tiny B64 lr0.4 c0.04 s2: {memory}"]


def test_an_import_that_breaks_leaves_a_failed_run_and_can_be_repeated(root, tmp_path, monkeypatch):
    folder, store = folder_with(tmp_path, record()), Store()
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(store, "finish_training", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
        import_results(folder, store)
    (broken,) = store.search("trainings", "full")
    assert broken.status == "FAILED" and "disk full" in broken.tags["cause"]
    assert len(import_results(folder, store).runs) == 1


def test_the_command_reports_its_counts_and_the_damaged_lines(root, tmp_path, command):
    folder = folder_with(tmp_path, record(1), record(2))
    code, out, _ = command("import", folder)
    assert code == 0 and "2 imported, 0 known already, 0 damaged" in out
    assert "2 of them" in out  # are of another code
    with open(folder / "results.jsonl", "a") as file:
        file.write("{}\n")
    code, out, err = command("import", folder)
    assert code == 1 and "0 imported, 2 known already, 1 damaged" in out and "results.jsonl, line 3" in err
    for wrong in (tmp_path / "none", tmp_path):
        code, _, err = command("import", wrong)
        assert code == 2 and f"{wrong} must" in err and "results.jsonl" in err


def test_a_folder_without_results_is_refused(root, tmp_path):
    with pytest.raises(WorkbenchError, match=r"results\.jsonl"):
        import_results(tmp_path, Store())


def test_a_damaged_table_is_reported_and_makes_no_broken_run(root, tmp_path):
    folder = folder_with(tmp_path, record(1), record(2), tables={"agc": pd.DataFrame({"step": [1], "ratio": [0.1]})})
    table, store = folder / "tables" / record(1).result.key / "agc.parquet", Store()
    whole = table.read_bytes()
    table.write_bytes(whole[: len(whole) // 2])
    summary = import_results(folder, store)
    (damaged,) = summary.damaged
    assert record(1).result.key in damaged and "agc.parquet" in damaged
    assert len(summary.runs) == len(store.search("trainings", "full")) == 1
    table.write_bytes(whole)  # copied from the node again
    assert len(import_results(folder, store).runs) == 1


def test_a_tar_is_imported_under_the_name_of_its_folder(root, tmp_path):
    folder = folder_with(tmp_path, record(1), record(2), tables={"signal": SIGNAL})
    store = Store()
    (first, _) = import_results(pack_folder(folder), store).runs
    assert store.get(first).tags["imported"] == "node-7"
    assert "tables/signal.parquet" in store.artifacts(first)
    again = import_results(folder, store)
    assert (again.runs, again.known) == ([], 2)


def test_a_folder_of_the_first_edition_is_imported(root, tmp_path):
    """The first edition numbers its files, and one table holds the rows of all trainings."""
    folder = tmp_path / "node-7"
    folder.mkdir()
    for file, seed in (("results.jsonl", 1), ("results-2.jsonl", 2)):
        line = json.loads(record(seed).to_json())
        del line["tables"]
        (folder / file).write_text(json.dumps(line) + "\n")
    keys = [record(seed).result.key for seed in (1, 2)]
    rows = pd.DataFrame({"step": [1, 2, 1], "ratio": [0.1, 0.2, 0.3], "key": [keys[0], keys[0], keys[1]]})
    rows[:1].to_parquet(folder / "agc.parquet")
    rows[1:].to_parquet(folder / "agc-2.parquet")
    pd.DataFrame({"key": keys}).to_parquet(folder / "history.parquet")
    records = [line for _, line in read_records(folder)]
    assert [tables_of(folder, line)["agc"].ratio.tolist() for line in records] == [[0.1, 0.2], [0.3]]
    assert len(import_results(folder, Store()).runs) == 2
