"""MLflow's database in its place under mlruns/, damaged before a command meets it."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from support.store_runs import log_training
from workbench.lab import Store


@dataclass(frozen=True)
class Damage:
    """A damage to a store, and what the message names.

    Attributes:
        kind: One of `KINDS`.
        make: Damages the store in a root.
        names: What the message must contain. {root} is the root.
        has_runs: Whether the store has a finished training before.
        code: The exit code of `doctor`.
    """

    kind: str
    make: Callable[[Path], object]
    names: list[str]
    has_runs: bool = False
    code: int = 1

    def damage(self, root: Path) -> None:
        """Damage the store in a root."""
        if self.has_runs:
            log_training(Store())
        with closing(sqlite3.connect(root / DATABASE)) as database:
            database.execute("pragma wal_checkpoint(truncate)")
        self.make(root)


DATABASE = "mlruns/mlflow.db"
IMPOSSIBLE = {
    "too deep": "tables nest nothing",
    "too large": "a database of any size is read by row",
}


def _run(root, statement):
    with closing(sqlite3.connect(root / DATABASE)) as database, database:
        database.execute(statement)


def _of_version(version):
    return lambda root: _run(root, f"update alembic_version set version_num = '{version}'")


def _gone(root):
    for file in (root / "mlruns").glob("mlflow.db*"):
        file.unlink()


def _replace(root, content=b""):
    _gone(root)
    (root / DATABASE).write_bytes(content)


def _folder(root):
    _gone(root)
    (root / DATABASE).mkdir()


def _foreign(root):
    _gone(root)
    _run(root, "create table mine (x int)")


def _pages(root):
    file = root / DATABASE
    size = file.stat().st_size
    with open(file, "r+b") as stream:
        stream.seek(size // 2)
        stream.write(os.urandom(size // 2))


def _pipe(root):
    _gone(root)
    os.mkfifo(root / DATABASE)


def _loop(root):
    _gone(root)
    (root / DATABASE).symlink_to("mlflow.db")


def _dangling(root):
    _gone(root)
    (root / DATABASE).symlink_to("/nowhere/mlflow.db")


def _store_is_a_file(root):
    shutil.rmtree(root / "mlruns")
    (root / "mlruns").write_text("")


def _lock_is_a_folder(root):
    (root / "mlruns" / ".store.lock").unlink()
    (root / "mlruns" / ".store.lock").mkdir()


STORE, FILE = "{root}/mlruns", "{root}/mlruns/mlflow.db"
DAMAGES = {
    "no database": Damage("missing", _gone, [STORE], has_runs=True),
    "an empty database": Damage("empty", _replace, [STORE], has_runs=True),
    "the database is a folder": Damage("wrong type", _folder, [FILE]),
    "mlruns is a file": Damage("wrong type", _store_is_a_file, [STORE, "WORKBENCH_ROOT"], code=2),
    "the lock is a folder": Damage("wrong type", _lock_is_a_folder, ["{root}/mlruns/.store.lock"]),
    "a newer MLflow": Damage("wrong value", _of_version("ffff00000000"), ["ffff00000000", "{mlflow}"]),
    "an older MLflow": Damage("wrong value", _of_version("451aebb31d03"),
                              ["mlflow db upgrade sqlite:///{root}/mlruns/mlflow.db"]),
    "another program's tables": Damage("wrong value", _foreign, [FILE]),
    "text": Damage("damaged", lambda r: _replace(r, b"no database" * 99), [FILE]),
    "overwritten pages": Damage("damaged", _pages, [FILE]),
    "a pipe": Damage("unreadable", _pipe, [FILE]),
    "a loop": Damage("unreadable", _loop, [FILE]),
    "a link to a lost disk": Damage("unreadable", _dangling, [FILE, "/nowhere/mlflow.db"]),
}  # fmt: skip
