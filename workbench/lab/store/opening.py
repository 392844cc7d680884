"""Opening a database for MLflow: a missing one is made, an unusable one is refused."""

import contextlib
import sqlite3
from pathlib import Path

import mlflow
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from workbench.errors import WorkbenchError
from workbench.lab.store.database import Database, is_database, make_whole, sqlite_file, without_password
from workbench.lab.store.locations import refuse_silent, runs_folder

MIGRATIONS = "store/db_migrations/versions"  # in MLflow's package: one file per layout of the database


def allow_many_writers(uri: str) -> None:
    """Let sqlite's readers go on during writes, by its write-ahead log if the disk supports it."""
    if (file := sqlite_file(uri)) is not None:
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(file, timeout=60)) as database:
            database.execute("pragma journal_mode = wal")


def make_tables(uri: str) -> None:
    """Make MLflow's sqlite file if it is missing."""

    def create(part: str) -> None:
        SqlAlchemyStore(part, (runs_folder() / "artifacts").as_uri()).engine.dispose()

    make_whole(uri, create)


def refuse_unusable(uri: str) -> None:
    """Refuse a server that does not answer, and a database of another MLflow version.

    Raises:
        WorkbenchError: If the store is unusable.
    """
    if uri.startswith(("http://", "https://")):
        refuse_silent(uri)
    elif is_database(uri):
        database = Database(uri)
        try:
            revision = database.revision() if database.file is None or database.file.exists() else None
        finally:
            database.close()
        known = {file.name.partition("_")[0] for file in (Path(mlflow.__file__).parent / MIGRATIONS).glob("*.py")}
        if revision is not None and revision not in known:
            raise WorkbenchError(
                f"another MLflow made the store {without_password(uri)}: MLflow {mlflow.__version__} does not know its "
                f"layout {revision}. Install the version that made it, or set MLFLOW_TRACKING_URI to another store."
            )
