"""Opening a database for MLflow: one that is missing is made whole, one that cannot serve is refused."""

import contextlib
import sqlite3
from pathlib import Path

import mlflow
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from workbench.errors import WorkbenchError
from workbench.lab.store.database import Database, is_database, make_whole, sqlite_file, without_password
from workbench.lab.store.locations import refuse_silent, runs_folder

MIGRATIONS = "store/db_migrations/versions"  # of MLflow: a file a layout of the database


def allow_many_writers(uri: str) -> None:
    """Lets readers go on while somebody writes: sqlite's write-ahead log, where the disk can have one."""
    if (file := sqlite_file(uri)) is not None:
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(file, timeout=60)) as database:
            database.execute("pragma journal_mode = wal")


def make_tables(uri: str) -> None:
    """Make MLflow's sqlite file if there is none."""

    def create(part: str) -> None:
        SqlAlchemyStore(part, (runs_folder() / "artifacts").as_uri()).engine.dispose()

    make_whole(uri, create)


def refuse_unusable(uri: str) -> None:
    """Raises: WorkbenchError for a server that does not answer, for which MLflow would wait minutes, and for a database
    that another MLflow made."""
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
                f"the store {without_password(uri)} was made by another MLflow: its layout {revision} is unknown "
                f"to MLflow {mlflow.__version__}. Install the version that made it, or set MLFLOW_TRACKING_URI to "
                "another store."
            )
