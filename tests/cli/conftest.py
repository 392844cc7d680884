"""Fixtures of commands that must refuse bad input, and leave nothing behind."""

import contextlib
import sqlite3

import pytest
from support.bad_input import files
from support.bad_input.checkpoints import EVIL
from support.checkout import CHECKOUT


@pytest.fixture(scope="session")
def bad(tmp_path_factory):
    """A folder with a damaged or unusable file of every kind."""
    return files.make(tmp_path_factory.mktemp("bad"))


def sizes_of_files(*folders):
    """The size of every file except the store's, by path. A refused command must not change them."""
    store_files = ("mlflow.db", ".store.lock", ".optuna.lock", "ui.log", "locks")
    sizes = {}
    for folder in folders:
        for f in folder.rglob("*"):
            if not any(part.startswith(store_files) for part in f.relative_to(folder).parts):
                sizes[f] = f.lstat().st_size if f.is_file() else -1
    return sizes


@pytest.fixture
def recorded_runs(root):
    """Return a function that lists runs with status RUNNING or FINISHED. A refused command must leave none."""

    def runs():
        if not (root / "mlruns" / "mlflow.db").is_file():
            return []
        with (
            contextlib.suppress(sqlite3.Error),
            sqlite3.connect(f"file:{root}/mlruns/mlflow.db?mode=ro", uri=True) as db,
        ):
            return db.execute("select name, status from runs where status in ('RUNNING', 'FINISHED')").fetchall()
        return []

    return runs


@pytest.fixture
def refused(root, bad, command, recorded_runs, tmp_path, monkeypatch):
    """Runs a command from an empty folder, checks that it is refused, and returns what it printed to stderr."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (root / "benchmarks").symlink_to(CHECKOUT / "benchmarks")

    def run(*arguments, code=2):
        before, runs_before = sizes_of_files(root, work, bad), recorded_runs()
        exit_code, out, errors = command(*(str(a).replace("{bad}", str(bad)) for a in arguments))
        assert exit_code == code, (exit_code, out, errors)
        assert "Traceback" not in errors + out and "unexpected error" not in errors
        assert EVIL not in errors + out
        assert sizes_of_files(root, work, bad) == before
        assert recorded_runs() == runs_before
        return errors

    return run
