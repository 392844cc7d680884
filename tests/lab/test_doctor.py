"""The doctor. Evidence: each kind of damage is made by hand; the dry run names it and changes nothing, --fix mends it, and
after that all is well. What a living process uses is left as it is."""

import hashlib
import os
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
from workbench.training import TrainConfig, TrainResult

CONFIG = TrainConfig(steps=4, batch_size=64, seed=2)
GONE = "/".join([*whoami().split("/")[:-2], "999999", "1"])  # a process of this machine that is no more


def training(store, outcome="complete", key="k" * 64, owner=None):
    run_id = store.open_training(CONFIG, key, "full", role="screen", arm="a", owner=owner)
    if outcome is not None:
        history = [{"step": s, "train_loss": 1.0, "val_acc": 0.5} for s in (2, 4)]
        store.log_rows(run_id, history)
        store.finish_training(run_id, TrainResult(key, CONFIG, outcome, history, {"val_acc": 0.5, "steps_done": 4}))
    return run_id


def state(root):
    """Every file's bytes, with databases by their rows: what a dry run may not change. Locks are taken for a look."""
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
    """Says what is found, without a change; then mends it; then finds nothing: the lines of the first two."""

    def run(*options):
        before = state(root)
        code, findings, _ = command("doctor", *options)
        assert code == 1, findings
        assert state(root) == before
        code, mended, _ = command("doctor", "--fix", *options)
        assert code == 0, mended
        code, afterwards, _ = command("doctor")
        assert (code, afterwards) == (0, "All well: nothing is left of a crash.\n")
        return findings, mended

    return run


def checkpoint(root, key="k" * 64, mode="full", name="step-00000002"):
    folder = root / "mlruns" / "checkpoints" / f"{mode}-{key[:32]}" / name
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(bytes(2**20))
    return folder


# ---- each kind of damage


def test_runs_that_nobody_runs_are_closed_whatever_their_kind(root, doctor):
    store = Store()
    living = training(store, outcome=None, key="a")
    dead = [training(store, outcome=None, key="b"), store.open_notebook("s", "s.ipynb", {}, "quick", "s", {})]
    dead += [store.open_run("checks", "net", {}, {}, source="workbench check")]
    for run_id in dead:
        store.set_tags(run_id, process=GONE)
    findings, mended = doctor()
    for run_id in dead:
        assert f"({run_id}) says RUNNING though nobody runs it; would close it as KILLED" in findings
        assert f"({run_id}) says RUNNING though nobody runs it; done: close it as KILLED" in mended
        assert store.status(run_id) == "KILLED" and store.get(run_id).tags["cause"]
    assert store.status(living) == "RUNNING" and living not in findings


@pytest.mark.parametrize("damage", ["file", "half", "folder"])
def test_a_finished_training_without_its_result_is_run_again(root, doctor, damage):
    store = Store()
    whole, hurt = training(store, key="a" * 64), training(store, key="b" * 64)
    folder = root / "mlruns" / "artifacts" / "trainings" / hurt / "artifacts"
    if damage == "folder":
        shutil.rmtree(folder.parent)
    else:
        text = (folder / "result.json").read_text()
        (folder / "result.json").unlink() if damage == "file" else (folder / "result.json").write_text(text[:40])
    findings, _ = doctor()
    assert f"({hurt}) says FINISHED but its files are gone; would mark it FAILED, to be run again" in findings
    assert whole not in findings
    assert (store.status(whole), store.status(hurt)) == ("FINISHED", "FAILED")
    assert store.find_training("b" * 64, "full") is None and store.find_training("a" * 64, "full")[0] == whole


def test_a_finished_notebook_without_its_files_is_run_again_but_one_by_hand_needs_none(root, doctor):
    store = Store()
    by_hand = store.open_notebook("s", "s.ipynb", {}, "full", "by hand", {})
    launched = store.open_notebook("s", "s.ipynb", {}, "full", "launched", {"key": "x"})
    for run_id in (by_hand, launched):
        store.close(run_id, "FINISHED")
    findings, _ = doctor()
    assert launched in findings and by_hand not in findings
    assert (store.status(launched), store.status(by_hand)) == ("FAILED", "FINISHED")


def test_of_points_logged_twice_the_last_is_kept(root, doctor):
    store = Store()
    run_id = training(store)
    for value in (0.7, 0.8):
        time.sleep(0.002)
        store.log_metrics(run_id, {"val_acc": value}, step=2)
    findings, _ = doctor()
    assert "has 2 points twice; would keep the last of each" in findings
    points = client(store).get_metric_history(run_id, "val_acc")
    assert sorted((p.step, p.value) for p in points) == [(2, 0.8), (4, 0.5)]
    assert store.get(run_id).metrics["val_acc"] == 0.5  # of step 4: what MLflow shows stays


def abandoned_search(root, running=1):
    study = optuna.create_study(
        storage=f"sqlite:///{root}/mlruns/optuna.db", study_name="mine / NF 12", direction="maximize"
    )
    study.tell(study.ask(), 1.0)
    for _ in range(running):
        study.ask()
    return study


def test_trials_that_nobody_runs_are_given_up(root, doctor):
    study = abandoned_search(root, running=2)
    findings, _ = doctor()
    assert "trial 1 of the search 'mine / NF 12' says RUNNING though nobody runs it; would mark it FAIL" in findings
    assert [t.state.name for t in study.get_trials()] == ["COMPLETE", "FAIL", "FAIL"]


def test_checkpoints_of_complete_trainings_go_and_those_of_others_stay(root, doctor):
    store = Store()
    training(store, key="a" * 64)
    training(store, "diverged", key="b" * 64)
    store.set_tags(training(store, None, key="c" * 64), process=GONE)
    gone, diverged, killed = (checkpoint(root, key=key * 64) for key in "abc")
    findings, _ = doctor()
    assert f"{gone.parent} is of a training that is complete (1.0 MiB); would remove it" in findings
    assert not gone.parent.exists() and diverged.is_dir() and killed.is_dir()


def test_halves_of_checkpoints_and_of_uploads_go(root, doctor):
    store = Store()
    run_id = training(store)
    whole, half = checkpoint(root, key="c" * 64), checkpoint(root, key="c" * 64, name=".part-99999999-00000004")
    (half.parent / ".99999999-result.json").write_bytes(bytes(2**19))
    being_written = checkpoint(root, key="d" * 64, name=f".part-{os.getpid()}-00000004")
    upload = root / "mlruns" / "artifacts" / "trainings" / run_id / "artifacts" / ".artifact.uploading.x1"
    upload.write_bytes(bytes(2**19))
    findings, mended = doctor()
    assert f"{half} was being written when its process ended (1.0 MiB); would remove it" in findings
    assert whole.is_dir() and not half.exists() and not upload.exists() and being_written.is_dir()
    assert mended.splitlines()[-1].split() == ["halves", "3", "3", "2.0"]


def test_files_of_no_run_are_set_aside_and_those_in_the_trash_stay(root, doctor):
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
    assert places[1].exists()  # of an experiment that is not ours
    assert (root / "mlruns" / "artifacts" / "trainings" / deleted).is_dir()


def test_the_files_of_another_store_in_this_root_are_not_lost(root, monkeypatch, command, tmp_path):
    first = training(Store())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    second = training(Store())
    assert command("doctor", "--fix")[0] == 0
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert Store().find_training("k" * 64, "full")[0] == first
    command("doctor", "--fix")
    assert (root / "mlruns" / "set-aside" / "trainings" / second / "artifacts" / "result.json").is_file()


def test_searches_that_cannot_be_read_are_told(root, monkeypatch, command):
    (root / "mlruns" / "optuna.db").write_text("no database")
    code, output, _ = command("doctor")
    assert code == 1 and "file is not a database): move the file away" in output
    (root / "mlruns" / "optuna.db").unlink()
    monkeypatch.setenv("WORKBENCH_OPTUNA_STORAGE", "postgresql+psycopg2://nobody:secret@127.0.0.1:1/x")
    code, output, _ = command("doctor")
    assert code == 1 and "the searches are out of reach" in output and "secret" not in output


def test_when_the_database_was_replaced_no_files_are_removed(root, command):
    place = root / "mlruns" / "artifacts" / "trainings" / ("f" * 32)
    place.mkdir(parents=True)
    code, output, _ = command("doctor", "--fix")
    assert code == 1 and "was it replaced?" in output and place.is_dir()


def test_processes_without_their_launcher_are_ended(root, doctor, tmp_path):
    def sleeper(launcher, where):
        environment = os.environ | Context("s", "full", launcher, "r").environment() | {"WORKBENCH_ROOT": str(where)}
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], env=environment)

    stray, kept, elsewhere = sleeper(GONE, root), sleeper(whoami(), root), sleeper(GONE, tmp_path)
    try:
        time.sleep(0.5)
        store = Store()
        run_id = training(store, outcome=None)
        lost = whoami(stray.pid)
        store.set_tags(run_id, process=lost)
        findings, _ = doctor()
        assert f"process {stray.pid} goes on though its launcher is gone" in findings
        assert f"({run_id}) says RUNNING" in findings  # it runs for nobody
        assert not is_alive(lost)
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


def test_a_moved_store_gets_its_new_place_and_everything_is_found_again(root, tmp_path, monkeypatch, command):
    run_id = training(Store())
    new = moved_store(root, tmp_path, monkeypatch)
    before = state(new)
    code, output, _ = command("doctor")
    assert code == 1 and state(new) == before
    assert f"have their files at {root}/mlruns, but the store is at {new}/mlruns; would put the new place" in output
    assert "would mark" not in output  # the results are there, in the new place
    code, output, _ = command("doctor", "--fix")
    assert code == 0, output
    assert Store().find_training("k" * 64, "full")[0] == run_id
    place = (new / "mlruns" / "artifacts" / "trainings" / run_id / "artifacts").as_uri()  # a space is %20 there
    assert Store().get(run_id).files_uri == place
    (copy,) = (new / "mlruns").glob("mlflow.db.*.before-move")
    assert Database(f"sqlite:///{copy}").places(["trainings"]) == {(root / "mlruns").as_uri(): 2}
    assert command("doctor")[0] == 0


def test_a_copy_is_given_its_own_place_only_when_told(root, tmp_path, monkeypatch, command):
    training(Store())
    new = moved_store(root, tmp_path, monkeypatch, keep=True)
    before = state(new)
    with pytest.raises(WorkbenchError, match=r"was moved or copied.*doctor --fix"):
        Store()  # it would write into the other one
    code, output, _ = command("doctor", "--fix")
    assert code == 1 and "there is a store there too: say --moved" in output
    assert state(new) == before
    assert command("doctor", "--fix", "--moved")[0] == 0
    assert Database(f"sqlite:///{new}/mlruns/mlflow.db").places(["trainings"]) == {(new / "mlruns").as_uri(): 2}
    assert Database(f"sqlite:///{root}/mlruns/mlflow.db").places(["trainings"]) == {(root / "mlruns").as_uri(): 2}


def test_a_moved_database_without_its_files_loses_no_result(root, tmp_path, monkeypatch, command):
    run_id = training(Store())
    new = moved_store(root, tmp_path, monkeypatch)
    shutil.move(new / "mlruns" / "artifacts", tmp_path / "left behind")
    code, output, _ = command("doctor", "--fix")
    assert code == 1 and "bring its folder artifacts/ here too" in output
    assert Store(anywhere=True).status(run_id) == "FINISHED"


def test_a_store_is_not_moved_under_a_run_that_goes_on(root, tmp_path, monkeypatch, command):
    training(Store(), outcome=None)
    training(Store())
    new = moved_store(root, tmp_path, monkeypatch)
    before = state(new)
    code, output, _ = command("doctor", "--fix")
    assert code == 1 and "runs are going on" in output and state(new) == before


def test_a_prefix_is_replaced_only_where_a_folder_ends(root):
    database = Database(f"sqlite:///{root}/mlruns/mlflow.db")
    here = (root / "mlruns").as_uri()
    assert database.move(here[:-1], "file:///x") == 0  # .../mlrun is no folder of .../mlruns
    assert database.move(here, "file:///a%20b/mlruns") >= 6
    assert set(database.places(["studies", "trainings"])) == {"file:///a%20b/mlruns"}


# ---- nothing that lives is touched


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
found = search(lambda p: config.replace(**p), {"base_lr": {"low": 0.01, "high": 0.1}}, trials=1, session=session)
assert list(found.trials.state) == ["COMPLETE"], found.trials
store.close(session.run_id, "FINISHED")
"""


@pytest.mark.slow
def test_a_training_that_runs_keeps_its_run_its_checkpoints_and_its_trial(root, command):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root)], env=os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    )
    try:
        deadline = time.monotonic() + 120
        while not (root / "waiting").exists() and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.1)
        before = state(root)
        assert sum("checkpoints/full-" in str(file) for file in before) > 3
        assert command("doctor", "--fix") == (0, "All well: nothing is left of a crash.\n", "")
        assert state(root) == before
        (root / "go").touch()
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait()
    assert command("doctor")[0] == 0
    (run,) = Store().runs("trainings")
    assert (run.status, run.tags["outcome"]) == ("FINISHED", "complete")


def test_what_a_lock_guards_is_not_removed(root, command):
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


def test_a_look_makes_no_store_where_there_is_none(tmp_path, monkeypatch, command):
    monkeypatch.setenv("WORKBENCH_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert command("doctor")[0] == 0
    assert not list(tmp_path.rglob("*.db"))


def test_the_lock_of_a_training_is_the_one_that_the_doctor_looks_at(root):
    from workbench.lab.executors.lifetime import is_held
    from workbench.lab.jobs.job_run import checkpoints_folder

    for mode in ("full", "quick"):
        lock = root / "mlruns" / "locks" / f"{checkpoints_folder(mode, 'a' * 64).name}.lock"
        with Store().lock(f"{mode}-{'a' * 64}"):
            assert is_held(lock)
        assert not is_held(lock)


def test_several_damages_at_once_are_counted_in_a_table(root, command):
    store = Store()
    for key in "ab":
        store.set_tags(training(store, None, key=key * 64), process=GONE)
    training(store, key="c" * 64)
    checkpoint(root, key="c" * 64)
    lines = command("doctor")[1].splitlines()
    assert lines[-4].split() == ["what", "found", "mended", "MiB"]
    assert [line.split() for line in lines[-3:-1]] == [["runs", "2", "0", "0.0"], ["checkpoints", "1", "0", "1.0"]]
    assert lines[-1] == "Nothing was changed; --fix mends."


def test_a_finding_that_cannot_be_mended_does_not_stop_the_others(root, command, monkeypatch):
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
    assert code == 1 and "could not remove it ([Errno 13] Permission denied)" in output and not place.exists()


def test_this_process_and_those_it_descends_from_are_never_strays(tmp_path):
    code = (
        "import os; from pathlib import Path; from workbench.lab.executors.lifetime import strays;"
        "stray = strays('x', Path(os.environ['WORKBENCH_ROOT'])); assert not stray, stray"
    )
    environment = os.environ | Context("s", "full", GONE, "r").environment() | {"PYTHONPATH": str(CHECKOUT)}
    environment["WORKBENCH_ROOT"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_worker_whose_launcher_is_gone_is_ended(root, doctor, tmp_path):
    """One that hangs, and cannot see that it is alone; it works below the root, and names it nowhere."""
    module = tmp_path / "code" / "workbench" / "pool"
    module.mkdir(parents=True)
    (module / "worker.py").write_text("import time\ntime.sleep(100)\n")
    environment = {k: v for k, v in os.environ.items() if k != "WORKBENCH_ROOT"} | {
        "PYTHONPATH": str(tmp_path / "code")
    }

    def worker(parent, folder):
        command = [sys.executable, "-m", "workbench.pool.worker", "7", str(parent)]
        return subprocess.Popen(command, env=environment, cwd=folder)

    gone = os.getppid()  # not their parent
    stray, kept, elsewhere = worker(gone, root / "mlruns"), worker(os.getpid(), root), worker(gone, tmp_path)
    try:
        time.sleep(0.5)
        findings, _ = doctor()
        assert f"process {stray.pid} goes on" in findings
        assert not psutil.pid_exists(stray.pid)
        assert kept.poll() is None and elsewhere.poll() is None
    finally:
        for process in (stray, kept, elsewhere):
            process.kill()
            process.wait()
