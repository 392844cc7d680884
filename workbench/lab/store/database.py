"""Direct access to MLflow's tables, for repairs that MLflow's client cannot make.

These are points that were logged twice, and a store that was moved. Every change is one transaction. The database must
be reachable from this machine. Repair a store behind a server on the machine of its database.
"""

import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import unquote, urlparse

from sqlalchemy import Engine, create_engine, inspect, text
from sqlalchemy.engine import URL, make_url

from workbench.lab.store import patience

patience.install()

# Columns in which MLflow keeps absolute paths.
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def sqlite_uri(file: Path) -> str:
    """Return the URI of a sqlite file. Characters with a meaning in URIs, such as `%` and `?`, are escaped.

    An escaped URI names the driver, too. MLflow takes the rest of `sqlite:///` as a path and makes its folder, without
    reading the escapes.
    """
    plain = URL.create("sqlite", database=str(file)).render_as_string()
    return plain if plain == f"sqlite:///{file}" else plain.replace("sqlite:", "sqlite+pysqlite:", 1)


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a sqlite database. None for other databases and for a server."""
    if not uri.startswith("sqlite"):
        return None
    name = make_url(uri).database
    return Path(name) if name else None


def make_whole(uri: str, create: Callable[[str], None]) -> bool:
    """Make a missing sqlite file, complete or not at all. Other databases are left unchanged.

    If a process is killed while `create` makes the tables, a partial file remains next to the final one. The next call
    starts again. Hold a lock during the call, because two processes must not do this at once.

    Args:
        uri: The database.
        create: Makes the tables in the database whose URI it receives, and closes it.

    Returns:
        Whether it made the file.
    """
    file = sqlite_file(uri)
    if file is None or is_made(file):
        return False
    part = file.with_name(f".part-{file.name}")
    logs = [file.with_name(f"{file.name}-{log}") for log in ("wal", "shm", "journal")]  # of a file that is gone
    for left in [*file.parent.glob(f"{part.name}*"), *logs]:
        left.unlink(missing_ok=True)
    create(sqlite_uri(part))
    part.replace(file)
    return True


def is_made(file: Path) -> bool:
    """Return whether a database file exists and has content."""
    return file.exists() and (not file.is_file() or file.stat().st_size > 0)


def damage_of(file: Path) -> str | None:
    """Let SQLite check the structure of a file.

    Returns:
        The first damage, in SQLite's words. None: the file is whole, missing, or locked by another process.
    """
    if not is_made(file):
        return None
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=60)) as database:
            ((answer,),) = database.execute("pragma quick_check(1)").fetchall()
    except sqlite3.DatabaseError as error:
        return str(error) if patience.damage_message(error) else None
    return None if answer == "ok" else " ".join(answer.split())


class Database:
    """The database of a store.

    Args:
        uri: The database, as in `MLFLOW_TRACKING_URI`.
    """

    def __init__(self, uri: str):
        self.uri = uri
        options = {} if uri.startswith("sqlite") else {"connect_timeout": 10}  # seconds for a server's first answer
        self._engine: Engine = create_engine(with_driver(uri), connect_args=options)

    @property
    def file(self) -> Path | None:
        """Return the sqlite file. None for other databases."""
        return sqlite_file(self.uri)

    def revision(self) -> str | None:
        """Return the revision of MLflow's migrations that the tables have. None without tables."""
        if not inspect(self._engine).has_table("alembic_version"):
            return None
        return next(iter(self._column("select version_num from alembic_version")), None)

    def tables(self) -> list[str]:
        """Return the names of all tables."""
        return inspect(self._engine).get_table_names()

    def run_ids(self) -> set[str]:
        """Return the ids of all runs, including deleted ones in MLflow's trash."""
        return set(self._column("select run_uuid from runs"))

    def points_twice(self) -> dict[str, int]:
        """Count surplus points by run id. Each metric should have one point per step."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                text(
                    "select run_uuid, sum(n - 1) from (select run_uuid, count(*) as n from metrics "
                    "group by run_uuid, key, step having count(*) > 1) as twice group by run_uuid"
                )
            )
            return {run_id: int(n) for run_id, n in rows}

    def drop_points_twice(self, run_id: str) -> int:
        """Delete surplus points of a run and return their number.

        Of several points of one metric at one step, the last one stays. MLflow shows this one as the value.
        """
        columns = ("key", "step", "timestamp", "value", "is_nan")
        with self._engine.begin() as connection:
            order = "order by key, step, timestamp, value"
            points = connection.execute(
                text(f"select {', '.join(columns)} from metrics where run_uuid = :run {order}"), {"run": run_id}
            ).all()
            surplus = []
            for _, same in itertools.groupby(points, key=lambda point: (point.key, point.step)):
                surplus += list(same)[:-1]
            if surplus:
                where = " and ".join(f"{c} = :{c}" for c in columns)
                connection.execute(
                    text(f"delete from metrics where run_uuid = :run and {where}"),
                    [{"run": run_id, **point._mapping} for point in surplus],
                )
        return len(surplus)

    def drop_points_from(self, run_id: str, metrics: list[str], step: int) -> None:
        """Delete the points of these metrics from a step on, and forget the last value of each."""
        with self._engine.begin() as connection:
            for metric in metrics:
                values = {"run": run_id, "key": metric, "step": step}
                where = "where run_uuid = :run and key = :key"
                connection.execute(text(f"delete from metrics {where} and step >= :step"), values)
                connection.execute(text(f"delete from latest_metrics {where}"), values)

    def places(self, experiments: Iterable[str]) -> dict[str, int]:
        """Find the locations of mlruns/ that experiments and their runs point to.

        Args:
            experiments: Names of experiments.

        Returns:
            By location (a URI), the number of experiments and runs that point to it.
        """
        counts: dict[str, int] = {}
        with self._engine.connect() as connection:
            rows = connection.execute(
                text(
                    "select name, artifact_location from experiments union all select e.name, r.artifact_uri "
                    "from runs r join experiments e on e.experiment_id = r.experiment_id"
                )
            ).all()
        known = set(experiments)
        for name, place in rows:
            prefix, between, _ = (place or "").rpartition(f"/artifacts/{name}")
            if name in known and between:
                counts[prefix] = counts.get(prefix, 0) + 1
        return counts

    def move(self, old: str, new: str) -> int:
        """Replace one location of mlruns/ with another in all stored paths.

        Args:
            old: URI of the old location.
            new: URI of the new location.

        Returns:
            The number of changed rows.
        """
        moved = 0
        with self._engine.begin() as connection:
            for (table, column), (a, b) in itertools.product(PLACES, ((old, new), (as_path(old), as_path(new)))):
                moved += connection.execute(
                    text(
                        f"update {table} set {column} = :new || substr({column}, :length) "
                        f"where substr({column}, 1, :length) = :old || '/'"
                    ),
                    {"old": a, "new": b, "length": len(a) + 1},
                ).rowcount
        return moved

    def move_run(self, run_id: str, experiment_id: str, files_uri: str) -> None:
        """Move a run to another experiment, with its files at `files_uri`."""
        with self._engine.begin() as connection:
            connection.execute(
                text("update runs set experiment_id = :experiment, artifact_uri = :files where run_uuid = :run"),
                {"experiment": int(experiment_id), "files": files_uri, "run": run_id},
            )

    def backup(self, target: Path) -> None:
        """Copy the sqlite file. Other processes may use it meanwhile."""
        with (
            contextlib.closing(sqlite3.connect(self.file)) as source,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _column(self, query: str) -> list[str]:
        with self._engine.connect() as connection:
            return list(connection.execute(text(query)).scalars())


def is_database(uri: str) -> bool:
    """Return whether a tracking URI names a database, and not a server."""
    return uri.partition(":")[0].partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql")


def with_driver(uri: str) -> str:
    """Add the driver of the extra `postgres` to `postgresql://`. SQLAlchemy would take another."""
    return uri.replace("postgresql://", "postgresql+psycopg2://", 1)


def without_password(uri: str) -> str:
    """Return a URI that is safe to print."""
    password = urlparse(uri).password
    return uri.replace(f":{password}@", ":***@", 1) if password else uri


def as_path(uri: str) -> str:
    """Return the path of a file URI. MLflow stores some locations as paths, which stay as they are."""
    return unquote(urlparse(uri).path) if uri.startswith("file:") else uri
