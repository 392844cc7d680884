"""SQLite connections that wait for a locked file, say so once, and name a damaged file.

A backup may lock a file for a minute or more. MLflow and Optuna open their connections themselves, so `install` lets
SQLAlchemy make all of them with this class.
"""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from workbench.lab.executors import channel
from workbench.lab.store.locks import holder

PATIENCE = 600.0  # seconds until a locked file is an error
FIRST_WAIT = 2.0  # seconds that SQLite itself waits, before anything is said. MLflow sets 20
PAUSE = 0.1  # seconds between two tries, because SQLite may answer at once
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class PatientConnection(sqlite3.Connection):
    """A connection whose statements and commits wait for other processes."""

    def __init__(self, database: str, *args, **kwargs):
        super().__init__(database, *args, **kwargs)
        self.file = database

    def cursor(self, factory: type[sqlite3.Cursor] | None = None) -> sqlite3.Cursor:
        """Return a cursor that waits."""
        return super().cursor(factory or _PatientCursor)

    def commit(self) -> None:
        """Commit, after a wait if another process reads or writes."""
        _patiently(self.file, super().commit)


class _PatientCursor(sqlite3.Cursor):
    def execute(self, *arguments) -> sqlite3.Cursor:
        return _patiently(self.connection.file, super().execute, *arguments)

    def executemany(self, *arguments) -> sqlite3.Cursor:
        return _patiently(self.connection.file, super().executemany, *arguments)


def install() -> None:
    """Make all SQLite connections of SQLAlchemy in this process patient."""
    if not event.contains(Engine, "do_connect", _make_patient):
        event.listen(Engine, "do_connect", _make_patient)


def _make_patient(dialect: Any, record: Any, arguments: list, options: dict) -> None:
    if dialect.name == "sqlite":
        options.setdefault("factory", PatientConnection)
        options.setdefault("timeout", FIRST_WAIT)


def damage_message(error: BaseException | None) -> str | None:
    """Return the sentence about a damaged database in an error and its causes. None: it has another cause."""
    while error is not None:
        if isinstance(error, sqlite3.DatabaseError) and _code(error) in DAMAGED:
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def _patiently(file: str, call: Callable, *arguments) -> Any:
    began = None
    while True:
        try:
            return call(*arguments)
        except sqlite3.DatabaseError as error:
            if _code(error) in DAMAGED:
                raise _with_code(
                    error, f"{file} is damaged ({error}). Run `./run doctor` to see what to do."
                ) from error
            if _code(error) != sqlite3.SQLITE_BUSY:
                raise
            if began is None:
                began, who = time.monotonic(), holder(Path(file), Path(f"{file}-shm"))
                channel.announce(f"waits for {file}: {who} has locked it")
            time.sleep(PAUSE)
            if time.monotonic() - began > PATIENCE:
                raise _with_code(error, f"{file} was locked for {PATIENCE / 60:.0f} minutes ({error})") from error


def _code(error: sqlite3.Error) -> int | None:
    return getattr(error, "sqlite_errorcode", None)


def _with_code(error: sqlite3.Error, message: str) -> sqlite3.Error:
    """Return an error of the same kind with another message."""
    other = type(error)(message)
    other.sqlite_errorcode, other.sqlite_errorname = error.sqlite_errorcode, error.sqlite_errorname
    return other
