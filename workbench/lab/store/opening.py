"""Opening a database for MLflow: a missing one is made, an unusable one is refused."""

import os
from pathlib import Path

import mlflow
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from workbench.errors import WorkbenchError, disk_error_message
from workbench.lab.store.database import Database, is_database, is_made, make_whole, sqlite_file, without_password
from workbench.lab.store.disk import set_journal
from workbench.lab.store.locations import default_uri, refuse_silent, run_folders, runs_folder
from workbench.lab.store.patience import damage_message

MIGRATIONS = "store/db_migrations/versions"  # in MLflow's package: one file per layout of the database


def make_tables(uri: str) -> None:
    """Make MLflow's sqlite file if it is missing, and choose its journal."""

    def create(part: str) -> None:
        SqlAlchemyStore(part, (runs_folder() / "artifacts").as_uri()).engine.dispose()

    is_new = make_whole(uri, create)
    if (file := sqlite_file(uri)) is not None:
        set_journal(file, is_new=is_new)


def refuse_new(file: Path, tables: list[str]) -> None:
    """Refuse to begin a store in another program's file, or where files of runs lost their database.

    Args:
        file: A database without the tables of a store.
        tables: The tables that it has.

    Raises:
        WorkbenchError: If no new store should begin here.
    """
    if tables:
        raise WorkbenchError(
            f"{file} holds tables of another program ({', '.join(tables[:3])}), not of a store. Move it away, "
            "put a copy of the store's database in its place, or set MLFLOW_TRACKING_URI to another store."
        )
    runs = run_folders() if file == sqlite_file(default_uri()) else {}
    if runs:
        artifacts = runs_folder() / "artifacts"
        raise WorkbenchError(
            f"{file} is missing or empty, so the files of {len(runs)} runs under {artifacts} have no entry. Put a copy "
            "of the database back, set MLFLOW_TRACKING_URI to the store of these runs, or move the folder away to "
            "begin a new store."
        )


def refuse_unusable(uri: str) -> None:
    """Refuse a server that does not answer, and a database of another MLflow version.

    Raises:
        WorkbenchError: If the store is unusable.
    """
    if uri.startswith(("http://", "https://")):
        refuse_silent(uri)
    elif is_database(uri):
        database = Database(uri)
        if database.file is not None and database.file.is_symlink() and not database.file.exists():
            raise WorkbenchError(
                f"{database.file} is a link to a file that is gone ({os.readlink(database.file)}). Mount its disk, or "
                "remove the link to get a new store."
            )
        try:
            made = database.file is None or is_made(database.file)
            revision = database.revision() if made else None
            tables = database.tables() if made and revision is None else []
        finally:
            database.close()
        if revision is None and database.file is not None:
            refuse_new(database.file, tables)
        known = {file.name.partition("_")[0] for file in (Path(mlflow.__file__).parent / MIGRATIONS).glob("*.py")}
        if revision is not None and revision not in known:
            raise WorkbenchError(
                f"another MLflow made the store {without_password(uri)}: MLflow {mlflow.__version__} does not know its "
                f"layout {revision}. Install the version that made it, or set MLFLOW_TRACKING_URI to another store."
            )


def unopened(uri: str, error: Exception) -> WorkbenchError:
    """Make the error for a store that cannot be opened, with its cause and its cure. The caller raises it."""
    if damage := damage_message(error):
        return WorkbenchError(f"cannot open the store: {damage}")
    cause, uri = str(getattr(error, "orig", None) or error).splitlines()[0], without_password(uri)
    cure = "Move the file away to get a new store, or set MLFLOW_TRACKING_URI to another store"
    if "db upgrade" in cause:
        cause, cure = "an older MLflow made it", f"Copy it, then run `mlflow db upgrade {uri}`"
    elif disk_error_message(error):
        cure = "Free some space, or choose another folder with WORKBENCH_ROOT or MLFLOW_TRACKING_URI"
    elif isinstance(error, ImportError):
        cure = "Install the missing package, or set MLFLOW_TRACKING_URI to another store"
    return WorkbenchError(f"cannot open the store {uri} ({cause}). {cure}.")
