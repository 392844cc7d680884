"""The doctor. Evidence: each kind of damage is made by hand, then named by a dry run, then mended by --fix.

The dry run changes nothing. After that all is well. What a living process uses stays as it is.
"""

import hashlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time

import optuna
import psutil
import pytest
from support.checkout import CHECKOUT
from support.mlflow_view import client

from workbench.errors import WorkbenchError
from workbench.lab import Store
from workbench.lab.executors.context import Context
from workbench.lab.executors.lifetime import is_alive, whoami
from workbench.lab.jobs.search import search_lock
from workbench.lab.store.database import Database
from workbench.outcomes import FINISHED
from workbench.training import TrainConfig, TrainResult

CONFIG = TrainConfig(steps=4, batch_size=64, seed=2)
GONE = "/".join([*whoami().split("/")[:-2], "999999", "1"])  # a process of this machine that has ended


def training(store, outcome="complete", key="k" * 64, owner=None):
    run_id = store.open_training(CONFIG, key, "full", role="screen", arm="a", owner=owner)
    if outcome is not None:
        history = [{"step": s, "train_loss": 1.0, "val_acc": 0.5} for s in (2, 4)]
        store.log_rows(run_id, history)
        store.finish_training(run_id, TrainResult(key, CONFIG, outcome, history, {"val_acc": 0.5, "steps_done": 4}))
    return run_id


def state(root):
    """Return digests of all that a dry run must not change: files by their bytes, databases by their rows.

    Locks do not count, because a dry run takes them.
    """
    digests = {}
    for file in sorted((root / "mlruns").rglob("*")):
        if file.suffix == ".lock" or file.name == "locks":
            continue
        if file.suffix == ".db":
            with sqlite3.connect(file) as db:
                digests[file] = hashlib.sha256("\n".join(db.iterdump()).encode()).hexdigest()
        elif file.is_file() and not file.name.endswith(("-wal", "-shm", "-journal")):
            digests[file] = hashlib.sha256(file.read_bytes()).hexdigest()
        elif file.is_dir():
            digests[file] = ""
    return digests


@pytest.fixture
def doctor(root, command):
    """Run the doctor dry, then with --fix, then dry again without findings. Returns the first two outputs."""

    def run(*options):
        before = state(root)
        code, findings, _ = command("doctor", *options)
        assert code == 1, findings
        assert state(root) == before
        code, mended, _ = command("doctor", "--fix", *options)
        assert code == 0, mended
        code, afterwards, _ = command("doctor")
        assert code == 0 and len(afterwards.splitlines()) == 1, afterwards
        return findings, mended

    return run


def checkpoint(root, key="k" * 64, mode="full", name="step-00000002"):
    folder = root / "mlruns" / "checkpoints" / f"{mode}-{key[:32]}" / name
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(bytes(2**20))
    return folder


# ---- each kind of damage


def test_running_runs_without_a_process_are_closed_whatever_their_kind(root, doctor):
    store = Store()
    living = training(store, outcome=None, key="a")
    dead = [training(store, outcome=None, key="b"), store.open_notebook("s", "s.ipynb", {}, "quick", "s", {})]
    dead += [store.open_run("checks", "net", {}, {}, source="workbench check")]
    for run_id in dead:
        store.set_tags(run_id, process=GONE)
    findings, mended = doctor()
    for run_id in dead:
        assert f"({run_id}) is RUNNING" in findings and f"({run_id}) is RUNNING" in mended
        assert findings.count("KILLED") == mended.count("KILLED") == len(dead)
        assert store.status(run_id) == "KILLED" and store.get(run_id).tags["cause"]
    assert store.status(living) == "RUNNING" and living not in findings


@pytest.mark.parametrize("damage", ["file", "half", "folder"])
def test_a_finished_training_without_its_result_will_run_again(root, doctor, damage):
    store = Store()
    whole, damaged = training(store, key="a" * 64), training(store, key="b" * 64)
    folder = root / "mlruns" / "artifacts" / "trainings" / damaged / "artifacts"
    if damage == "folder":
        shutil.rmtree(folder.parent)
    else:
        text = (folder / "result.json").read_text()
        (folder / "result.json").unlink() if damage == "file" else (folder / "result.json").write_text(text[:40])
    findings, _ = doctor()
    assert re.search(rf"\({damaged}\) is FINISHED.*FAILED", findings)
    assert whole not in findings
    assert (store.status(whole), store.status(damaged)) == ("FINISHED", "FAILED")
    assert store.find_training("b" * 64, "full") is None and store.find_training("a" * 64, "full")[0] == whole


def test_a_launched_notebook_without_its_files_will_run_again_but_a_manual_one_needs_no_files(root, doctor):
    store = Store()
    by_hand = store.open_notebook("s", "s.ipynb", {}, "full", "by hand", {})
    launched = store.open_notebook("s", "s.ipynb", {}, "full", "launched", {"key": "x"})
    for run_id in (by_hand, launched):
        store.close(run_id, "FINISHED")
    findings, _ = doctor()
    assert launched in findings and by_hand not in findings
    assert (store.status(launched), store.status(by_hand)) == ("FAILED", "FINISHED")


def test_points_logged_twice_keep_the_last(root, doctor):
    store = Store()
    run_id = training(store)
    for value in (0.7, 0.8):
        time.sleep(0.002)
        store.log_metrics(run_id, {"val_acc": value}, step=2)
    findings, _ = doctor()
    assert "has 2 points twice" in findings
    points = client(store).get_metric_history(run_id, "val_acc")
    assert sorted((p.step, p.value) for p in points) == [(2, 0.8), (4, 0.5)]
    assert store.get(run_id).metrics["val_acc"] == 0.5  # of step 4: the value that MLflow shows stays


def abandoned_search(root, running=1):
    study = optuna.create_study(
        storage=f"sqlite:///{root}/mlruns/optuna.db", study_name="mine / NF 12", direction="maximize"
    )
    trial = study.ask()
    trial.set_user_attr("row", {"run_id": "a" * 32})
    study.tell(trial, 1.0)
    for _ in range(running):
        study.ask()
    return study


def test_running_trials_without_a_process_are_given_up(root, doctor):
    study = abandoned_search(root, running=2)
    findings, _ = doctor()
    assert re.search("trial 1 of the search 'mine / NF 12' is RUNNING.*FAIL", findings)
    assert [t.state.name for t in study.get_trials()] == ["COMPLETE", "FAIL", "FAIL"]


def test_a_deleted_training_of_a_search_is_restored(root, doctor):
    store, study = Store(), abandoned_search(root, running=0)
    deleted, unused = training(store, key="a" * 64), training(store, key="b" * 64)
    trial = study.ask()
    trial.set_user_attr("row", {"run_id": deleted})
    study.tell(trial, 1.0)
    for run_id in (deleted, unused):
        client(store).delete_run(run_id)
    findings, _ = doctor()
    assert re.search(f"trial 1 of the search 'mine / NF 12' .*{deleted}", findings) and unused not in findings
    assert store.is_kept(deleted) and not store.is_kept(unused)


def test_a_deleted_experiment_is_restored_with_its_runs(root, doctor):
    store = Store()
    run_id = training(store)
    client(store).delete_experiment(store.experiment_id("trainings", "full"))
    findings, _ = doctor()
    assert "trainings" in findings
    assert Store().find_training("k" * 64, "full")[0] == run_id


def test_only_checkpoints_of_complete_trainings_are_removed(root, doctor):
    store = Store()
    training(store, key="a" * 64)
    training(store, "diverged", key="b" * 64)
    store.set_tags(training(store, None, key="c" * 64), process=GONE)
    complete, diverged, killed = (checkpoint(root, key=key * 64) for key in "abc")
    findings, _ = doctor()
    assert re.search(rf"{complete.parent} .*all its steps \(1.0 MiB\)", findings)
    assert not complete.parent.exists() and diverged.is_dir() and killed.is_dir()


def test_incomplete_checkpoints_and_uploads_are_removed(root, doctor):
    store = Store()
    run_id = training(store)
    whole, half = checkpoint(root, key="c" * 64), checkpoint(root, key="c" * 64, name=".part-99999999-00000004")
    (half.parent / ".99999999-result.json").write_bytes(bytes(2**19))
    being_written = checkpoint(root, key="d" * 64, name=f".part-{os.getpid()}-00000004")
    upload = root / "mlruns" / "artifacts" / "trainings" / run_id / "artifacts" / ".artifact.uploading.x1"
    upload.write_bytes(bytes(2**19))
    findings, mended = doctor()
    assert re.search(rf"{half} is incomplete.*\(1.0 MiB\)", findings)
    assert whole.is_dir() and not half.exists() and not upload.exists() and being_written.is_dir()
    assert mended.splitlines()[-1].split() == ["halves", "3", "3", "2.0"]


def test_files_of_no_run_are_set_aside_and_those_of_deleted_runs_stay(root, doctor):
    store = Store()
    deleted = training(store)
    client(store).delete_run(deleted)
    places = [
        root / "mlruns" / "artifacts" / name / run_id for name, run_id in (("trainings", "f" * 32), ("mine", "e" * 32))
    ]
    for place in places:
        (place / "artifacts").mkdir(parents=True)
        (place / "artifacts" / "result.json").write_text("{}")
    findings, _ = doctor()
    assert f"{places[0]} belongs to no run" in findings
    aside = root / "mlruns" / "set-aside" / "trainings" / ("f" * 32) / "artifacts" / "result.json"
    assert not places[0].exists() and aside.read_text() == "{}"
    assert places[1].exists()  # an experiment that the workbench does not know
    assert (root / "mlruns" / "artifacts" / "trainings" / deleted).is_dir()


def test_files_of_another_store_in_this_root_are_not_lost(root, monkeypatch, command, tmp_path):
    first = training(Store())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    second = training(Store())
    assert command("doctor", "--fix")[0] == 0
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert Store().find_training("k" * 64, "full")[0] == first
    command("doctor", "--fix")
    assert (root / "mlruns" / "set-aside" / "trainings" / second / "artifacts" / "result.json").is_file()


def test_unreadable_searches_are_reported_without_the_password(root, monkeypatch, command):
    (root / "mlruns" / "optuna.db").write_text("no database")
    code, output, _ = command("doctor")
    assert code == 1 and "file is not a database" in output and f"{root}/mlruns/optuna.db" in output
    (root / "mlruns" / "optuna.db").unlink()
    monkeypatch.setenv("WORKBENCH_OPTUNA_STORAGE", "postgresql+psycopg2://nobody:secret@127.0.0.1:1/x")
    code, output, _ = command("doctor")
    assert code == 1 and "nobody" in output and "127.0.0.1:1" in output and "secret" not in output


def test_no_files_are_removed_when_the_database_was_replaced(root, command):
    place = root / "mlruns" / "artifacts" / "trainings" / ("f" * 32)
    place.mkdir(parents=True)
    code, output, _ = command("doctor", "--fix")
    assert code == 1 and "files of 1 runs" in output and "replaced" in output and place.is_dir()


def test_processes_whose_launcher_is_gone_are_ended(root, doctor, tmp_path):
    def sleeper(launcher, where):
        environment = os.environ | Context("s", "full", launcher, "r").environment() | {"WORKBENCH_ROOT": str(where)}
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], env=environment)

    stray, kept, elsewhere = sleeper(GONE, root), sleeper(whoami(), root), sleeper(GONE, tmp_path)
    try:
        time.sleep(0.5)
        store = Store()
        run_id = training(store, outcome=None)
        stray_identity = whoami(stray.pid)
        store.set_tags(run_id, process=stray_identity)
        findings, _ = doctor()
        assert f"process {stray.pid} still runs, but its launcher is gone" in findings
        assert f"({run_id}) is RUNNING" in findings  # a stray process runs it
        assert not is_alive(stray_identity)
        assert kept.poll() is None and elsewhere.poll() is None
        assert store.status(run_id) == "KILLED"
    finally:
        for process in (stray, kept, elsewhere):
            process.kill()
            process.wait()


# ---- a store that was moved


def moved_store(root, tmp_path, monkeypatch, name="new place", keep=False):
    new = tmp_path / name
    shutil.copytree(root, new, symlinks=True) if keep else shutil.move(root, new)
    monkeypatch.setenv("WORKBENCH_ROOT", str(new))
    return new


def test_a_moved_store_is_repaired_and_its_results_are_found_again(root, tmp_path, monkeypatch, command):
    run_id = training(Store())
    new = moved_store(root, tmp_path, monkeypatch)
    before = state(new)
    code, output, _ = command("doctor")
    assert code == 1 and state(new) == before
    assert f"{root}/mlruns, but" in output and f"{new}/mlruns; " in output
    assert "FAILED" not in output  # the results exist in the new place
    code, output, _ = command("doctor", "--fix")
    assert code == 0, output
    assert Store().find_training("k" * 64, "full")[0] == run_id
    place = (new / "mlruns" / "artifacts" / "trainings" / run_id / "artifacts").as_uri()  # the space becomes %20
    assert Store().get(run_id).files_uri == place
    (copy,) = (new / "mlruns").glob("mlflow.db.*.before-move")
    assert Database(f"sqlite:///{copy}").places(["trainings"]) == {(root / "mlruns").as_uri(): 2}
    assert command("doctor")[0] == 0


def test_a_copied_store_is_repaired_only_with_moved(root, tmp_path, monkeypatch, command):
    training(Store())
    new = moved_store(root, tmp_path, monkeypatch, keep=True)
    before = state(new)
    with pytest.raises(WorkbenchError, match="doctor --fix"):
        Store()  # it would write into the original
    code, output, _ = command("doctor", "--fix")
    assert code == 1 and f"{root}/mlruns, but" in output and "--moved" in output and "a store too" in output
    assert state(new) == before
    assert command("doctor", "--fix", "--moved")[0] == 0
    assert Database(f"sqlite:///{new}/mlruns/mlflow.db").places(["trainings"]) == {(new / "mlruns").as_uri(): 2}
    assert Database(f"sqlite:///{root}/mlruns/mlflow.db").places(["trainings"]) == {(root / "mlruns").as_uri(): 2}


def test_a_moved_database_without_its_files_loses_no_result(root, tmp_path, monkeypatch, command):
    run_id = training(Store())
    new = moved_store(root, tmp_path, monkeypatch)
    shutil.move(new / "mlruns" / "artifacts", tmp_path / "left behind")
    code, output, _ = command("doctor", "--fix")
    assert code == 1 and "its folder artifacts/" in output
    assert Store(anywhere=True).status(run_id) == "FINISHED"


def test_a_moved_store_is_not_repaired_while_a_run_is_running(root, tmp_path, monkeypatch, command):
    training(Store(), outcome=None)
    training(Store())
    new = moved_store(root, tmp_path, monkeypatch)
    before = state(new)
    code, output, _ = command("doctor", "--fix")
    assert code == 1 and "status RUNNING" in output and "--moved" in output and state(new) == before


def test_a_path_prefix_is_replaced_only_at_the_end_of_a_folder(root):
    database = Database(f"sqlite:///{root}/mlruns/mlflow.db")
    store_uri = (root / "mlruns").as_uri()
    assert database.move(store_uri[:-1], "file:///x") == 0  # .../mlrun is not a parent folder of .../mlruns
    assert database.move(store_uri, "file:///a%20b/mlruns") >= 6
    assert set(database.places(["studies", "trainings"])) == {"file:///a%20b/mlruns"}


# ---- what a living process uses is not touched


CHILD = """
import sys, time
from pathlib import Path
from workbench.lab import Session, Store, search
from workbench.training import TrainConfig, checkpoint
root = Path(sys.argv[1])
checkpoint.Checkpoints.due = lambda self, step: step == 2
save = checkpoint.Checkpoints.save
def waits(self, *arguments):
    save(self, *arguments)
    (self.folder / ".part-1-00000009").mkdir()
    (root / "waiting").touch()
    while not (root / "go").exists():
        time.sleep(0.05)
checkpoint.Checkpoints.save = waits
config = TrainConfig(steps=4, batch_size=16, train_size=32, device="cpu", progress=False)
store = Store()
session = Session(store, "mine", "full", store.open_notebook("mine", "mine.ipynb", {}, "full", "mine", {}))
result = search(lambda p: config.replace(**p), {"base_lr": {"low": 0.01, "high": 0.1}}, trials=1, session=session)
assert list(result.trials.state) == ["COMPLETE"], result.trials
store.close(session.run_id, "FINISHED")
"""


@pytest.mark.slow
def test_a_running_training_keeps_its_run_its_checkpoints_and_its_trial(root, command):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root)], env=os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    )
    try:
        deadline = time.monotonic() + 120
        while not (root / "waiting").exists() and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.1)
        before = state(root)
        assert sum("checkpoints/full-" in str(file) for file in before) > 3
        code, output, errors = command("doctor", "--fix")
        assert code == 0 and len(output.splitlines()) == 1 and not errors, output + errors
        assert state(root) == before
        (root / "go").touch()
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait()
    assert command("doctor")[0] == 0
    (run,) = Store().runs("trainings")
    assert run.status == "FINISHED" and run.tags["outcome"] in FINISHED


def test_locked_checkpoints_and_trials_are_not_touched(root, command):
    import filelock

    study = abandoned_search(root)
    training(Store(), key="a" * 64)
    folder = checkpoint(root, key="a" * 64)
    locks = root / "mlruns" / "locks"
    locks.mkdir(exist_ok=True)
    with filelock.FileLock(locks / f"full-{'a' * 32}.lock"), filelock.FileLock(search_lock("mine / NF 12")):
        assert command("doctor", "--fix")[0] == 0
    assert folder.is_dir() and study.get_trials()[1].state.name == "RUNNING"
    assert command("doctor")[0] == 1


def test_a_dry_run_creates_no_store(tmp_path, monkeypatch, command):
    monkeypatch.setenv("WORKBENCH_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert command("doctor")[0] == 0
    assert not list(tmp_path.rglob("*.db"))


def test_the_doctor_looks_at_the_lock_that_a_training_takes(root):
    from workbench.lab.executors.lifetime import is_held
    from workbench.lab.jobs.job_run import checkpoints_folder

    for mode in ("full", "quick"):
        lock = root / "mlruns" / "locks" / f"{checkpoints_folder(mode, 'a' * 64).name}.lock"
        with Store().lock(f"{mode}-{'a' * 64}"):
            assert is_held(lock)
        assert not is_held(lock)


def test_several_damages_are_counted_in_a_table(root, command):
    store = Store()
    for key in "ab":
        store.set_tags(training(store, None, key=key * 64), process=GONE)
    training(store, key="c" * 64)
    checkpoint(root, key="c" * 64)
    lines = command("doctor")[1].splitlines()
    assert [line.split() for line in lines[-3:-1]] == [["runs", "2", "0", "0.0"], ["checkpoints", "1", "0", "1.0"]]
    assert "--fix" in lines[-1]


def test_a_repair_that_fails_does_not_stop_the_others(root, command, monkeypatch):
    from workbench.lab import doctor as module

    store = Store()
    training(store, key="a" * 64)
    checkpoint(root, key="a" * 64)
    place = root / "mlruns" / "artifacts" / "trainings" / ("f" * 32)
    place.mkdir()
    original = shutil.rmtree

    def refuses(folder, *arguments, **kwargs):
        if "checkpoints" in str(folder):
            raise PermissionError(13, "Permission denied")
        return original(folder, *arguments, **kwargs)

    monkeypatch.setattr(module.shutil, "rmtree", refuses)
    code, output, _ = command("doctor", "--fix")
    assert code == 1 and "remove it ([Errno 13] Permission denied)" in output and not place.exists()


def test_this_process_and_its_ancestors_are_never_strays(tmp_path):
    code = (
        "import os; from pathlib import Path; from workbench.lab.executors.lifetime import strays;"
        "stray = strays('x', Path(os.environ['WORKBENCH_ROOT'])); assert not stray, stray"
    )
    environment = os.environ | Context("s", "full", GONE, "r").environment() | {"PYTHONPATH": str(CHECKOUT)}
    environment["WORKBENCH_ROOT"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_worker_whose_launcher_is_gone_is_ended(root, doctor, tmp_path):
    """The worker hangs, so it cannot end itself. It works in a folder of the root, without WORKBENCH_ROOT."""
    module = tmp_path / "code" / "workbench" / "pool"
    module.mkdir(parents=True)
    (module / "worker.py").write_text("import time\ntime.sleep(100)\n")
    environment = {k: v for k, v in os.environ.items() if k != "WORKBENCH_ROOT"} | {
        "PYTHONPATH": str(tmp_path / "code")
    }

    def worker(parent, folder):
        command = [sys.executable, "-m", "workbench.pool.worker", "7", str(parent)]
        return subprocess.Popen(command, env=environment, cwd=folder)

    other_process = os.getppid()  # not their parent
    stray, kept, elsewhere = (
        worker(other_process, root / "mlruns"),
        worker(os.getpid(), root),
        worker(other_process, tmp_path),
    )
    try:
        time.sleep(0.5)
        findings, _ = doctor()
        assert f"process {stray.pid} still runs" in findings
        assert not psutil.pid_exists(stray.pid)
        assert kept.poll() is None and elsewhere.poll() is None
    finally:
        for process in (stray, kept, elsewhere):
            process.kill()
            process.wait()
