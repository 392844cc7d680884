"""Faults of files, locks and disks under the store. Evidence: each is made by hand, then the store meets it."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import filelock
import psutil
import pytest
from support.store_runs import log_training

from workbench.errors import WorkbenchError
from workbench.lab import Store
from workbench.lab.jobs.search import search_lock
from workbench.lab.store import disk, locks, patience
from workbench.lab.store.locks import locked

HOLD = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1])
database.execute("begin exclusive")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""
LOCK = """
import sys, time, filelock
with filelock.FileLock(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@contextlib.contextmanager
def holding(code, file, seconds):
    """Run a process that has locked a file when this context begins."""
    process = subprocess.Popen([sys.executable, "-c", code, str(file), str(seconds)], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


def files_of_two_runs(root):
    return [log_training(Store(), key=key * 64) for key in "ab"]


def damage(file):
    """Overwrite the second half of a database, as a failing disk does. Its log goes into the file before."""
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("pragma wal_checkpoint(truncate)")
    size = file.stat().st_size
    with open(file, "r+b") as stream:
        stream.seek(size // 2)
        stream.write(os.urandom(size // 2))


# ---- a database that is gone, or another one


@pytest.mark.parametrize("database", ["missing", "empty", "of another program"])
def test_files_of_runs_without_their_database_are_named_and_no_store_begins(root, command, database):
    files_of_two_runs(root)
    file = root / "mlruns" / "mlflow.db"
    for part in file.parent.glob("mlflow.db*"):
        part.unlink()
    if database == "empty":
        file.touch()
    if database == "of another program":
        with contextlib.closing(sqlite3.connect(file)) as other, other:
            other.execute("create table notes (text)")
    before = file.read_bytes() if file.exists() else None
    for arguments in (["compare"], ["train", "-p", "steps=1"]):
        code, _, errors = command(*arguments)
        assert code == 2 and str(file) in errors and len(errors.splitlines()) == 1
        assert ("notes" if database == "of another program" else "2 runs") in errors
    code, output, _ = command("doctor", "--fix")
    assert code == 1 and str(file) in output
    assert (file.read_bytes() if file.exists() else None) == before


def test_a_new_store_begins_in_an_empty_file_without_files_of_runs_and_not_in_a_foreign_one(root, tmp_path):
    file = root / "mlruns" / "mlflow.db"
    file.write_bytes(b"")
    (root / "mlruns" / "mlflow.db-wal").write_bytes(b"of the file before")
    assert Store().search("trainings", "full") == []
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as database, database:
        database.execute("create table notes (text)")
    with pytest.raises(WorkbenchError, match=r"other\.db.*notes"):
        Store(f"sqlite:///{other}")


# ---- damaged databases


@pytest.mark.parametrize("name", ["mlflow.db", "optuna.db"])
def test_the_doctor_names_a_damaged_database_and_changes_nothing(root, command, name):
    files_of_two_runs(root)
    file = root / "mlruns" / name
    if name == "optuna.db":
        shutil.copy(root / "mlruns" / "mlflow.db", file)
    damage(file)
    before = file.read_bytes()
    code, output, _ = command("doctor", "--fix")
    assert code == 1 and str(file) in output and len(output.splitlines()[0]) < 500
    assert file.read_bytes() == before


def test_a_command_that_meets_a_damaged_database_says_so_in_one_sentence(root, command):
    files_of_two_runs(root)
    file = root / "mlruns" / "mlflow.db"
    damage(file)
    code, _, errors = command("compare")
    assert code == 2 and str(file) in errors and "doctor" in errors and len(errors.splitlines()) == 1
    (root / "mlruns" / "optuna.db").write_bytes(b"x" * 5000)
    with pytest.raises(WorkbenchError, match=r"optuna\.db.*doctor"):
        from workbench.lab.jobs.search import abandoned_trials

        abandoned_trials()


# ---- a database that another process has locked


def test_a_write_waits_for_a_locked_database_and_says_for_whom(root, capsys):
    store = Store()
    run_id = log_training(store)
    file = root / "mlruns" / "optuna.db"
    from workbench.lab.jobs.search import _open

    study = _open("mine")
    with holding(HOLD, file, 5) as process:
        study.set_user_attr("name", "value")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and str(file) in lines[0] and f"process {process.pid} " in lines[0]
    assert study.user_attrs == {"name": "value"} and store.status(run_id) == "FINISHED"


def test_a_database_that_stays_locked_is_an_error_that_names_it(root, monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE", 0.5)
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.1)
    file = root / "mlruns" / "mlflow.db"
    from workbench.lab.store.database import Database

    database = Database(f"sqlite:///{file}")
    with holding(HOLD, file, 60), pytest.raises(Exception, match=str(file)) as error:
        database.move("file:///a", "file:///b")
    assert patience.damage_message(error.value) is None


@pytest.mark.slow
def test_a_study_goes_on_after_a_backup_has_locked_the_store_for_a_minute(root, capsys):
    store = Store()
    with holding(HOLD, root / "mlruns" / "mlflow.db", 60):
        run_id = log_training(store)
    assert store.status(run_id) == "FINISHED"
    assert "mlflow.db" in capsys.readouterr().err


# ---- lock files


def test_opening_the_store_says_for_whom_it_waits(root, capsys, monkeypatch):
    monkeypatch.setattr(locks, "SILENT", 0.2)
    lock = root / "mlruns" / ".store.lock"
    with holding(LOCK, lock, 2) as process:
        Store()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and str(lock) in lines[0] and f"process {process.pid} " in lines[0]


def test_a_short_wait_for_a_lock_is_silent_and_the_lock_is_free_afterwards(tmp_path, capsys):
    with locked(tmp_path / "x.lock", "x"), pytest.raises(filelock.Timeout):
        filelock.FileLock(tmp_path / "x.lock").acquire(timeout=0)
    filelock.FileLock(tmp_path / "x.lock").acquire(timeout=0)
    assert capsys.readouterr().err == ""


def test_a_training_that_another_process_runs_is_named_after_two_seconds(root, capsys):
    from support.searches import BASE, session

    from workbench.lab import run_all
    from workbench.lab.jobs.job_run import JobRun
    from workbench.lab.jobs.run_all import Arm, Job

    here = session(root)
    lock = JobRun(Job(Arm("a", BASE), "screen"), here)._lock.lock_file
    with holding(LOCK, lock, 4) as process:
        run_all([BASE], here)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("waits")]
    assert BASE.name in line and f"process {process.pid} " in line


# ---- files in the place of folders


@pytest.mark.parametrize("name", ["locks", "locks/seats", "checkpoints", "artifacts", "artifacts/trainings"])
@pytest.mark.parametrize("how", ["file", "broken link"])
def test_a_file_in_the_place_of_a_folder_is_named_before_anything_runs(root, command, name, how):
    place = root / "mlruns" / name
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(exist_ok=True)
    place.write_text("x") if how == "file" else place.symlink_to(root / "nowhere")
    for arguments in (["train", "-p", "steps=1"], ["compare"]):
        code, _, errors = command(*arguments)
        assert code == 2 and str(place) in errors and len(errors.splitlines()) == 1
    code, output, _ = command("doctor")
    assert code == 1 and str(place) in output


def test_a_folder_in_the_place_of_a_lock_is_named(root):
    search_lock("mine").mkdir()
    with pytest.raises(WorkbenchError, match=str(search_lock("mine"))), locked(search_lock("mine"), "x"):
        pass


# ---- network file systems


def journal(file):
    with contextlib.closing(sqlite3.connect(file)) as database:
        return database.execute("pragma journal_mode").fetchone()[0]


@pytest.mark.parametrize(("kind", "mode"), [("nfs4", "delete"), ("fuse.sshfs", "delete"), ("ext4", "wal")])
def test_the_write_ahead_log_is_off_on_a_network_file_system_which_is_said_once(root, monkeypatch, capsys, kind, mode):
    mounts = [("/", "ext4"), (str(root), kind), (str(root.parent / "other"), "nfs")]
    mounts = [SimpleNamespace(mountpoint=place, fstype=each) for place, each in mounts]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    file = root / "mlruns" / "mlflow.db"
    assert journal(file) == "wal"
    Store()
    lines = capsys.readouterr().err.splitlines()
    assert journal(file) == mode
    assert len(lines) == (mode == "delete") and all(kind in line and str(file) in line for line in lines)
    Store()
    assert capsys.readouterr().err == ""
    assert (disk.network_type(file) is None) == (mode == "wal")
