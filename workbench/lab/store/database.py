"""The tables under MLflow's client, for what its client cannot mend: points logged twice, and a store that was moved.

Every change is one transaction. Only databases that can be opened from here: a store behind a server is mended where
its database is.
"""

import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import unquote, urlparse

from sqlalchemy import Engine, create_engine, inspect, text
from sqlalchemy.engine import make_url

# Where MLflow keeps absolute places.
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite database; None for one of another kind, and for a server's address."""
    if not uri.startswith("sqlite"):
        return None
    name = make_url(uri).database
    return Path(name) if name else None


def make_whole(uri: str, create: Callable[[str], None]) -> None:
    """Make a sqlite file that is missing, whole or not at all. Databases of other kinds are left alone.

    A process that is killed while `create` makes the tables leaves a part next to the file. The next one starts again.
    Two processes must not do this at once: hold a lock.

    Args:
        uri: Of the database.
        create: Makes the tables in the database with the URI it gets, and closes it.
    """
    file = sqlite_file(uri)
    if file is None or file.exists():
        return
    part = file.with_name(f".part-{file.name}")
    for left in file.parent.glob(f"{part.name}*"):
        left.unlink()
    create(f"sqlite:///{part}")
    part.replace(file)


class Database:
    """The database of a store, by its URI; `revision` names the layout of its tables, None where it has none yet."""

    def __init__(self, uri: str):
        self.uri = uri
        # Seconds: for others' writes, and for a server's first answer.
        patience = {"timeout": 60} if uri.startswith("sqlite") else {"connect_timeout": 10}
        self._engine: Engine = create_engine(with_driver(uri), connect_args=patience)

    @property
    def file(self) -> Path | None:
        """The sqlite file; None for a database of another kind."""
        return sqlite_file(self.uri)

    def revision(self) -> str | None:
        """The layout's name, as MLflow's migrations have it."""
        if not inspect(self._engine).has_table("alembic_version"):
            return None
        return next(iter(self._column("select version_num from alembic_version")), None)

    def run_ids(self) -> set[str]:
        """Every run, those in MLflow's trash among them."""
        return set(self._column("select run_uuid from runs"))

    def points_twice(self) -> dict[str, int]:
        """{run id: points too many}: of one metric at one step there is one."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                text(
                    "select run_uuid, sum(n - 1) from (select run_uuid, count(*) as n from metrics "
                    "group by run_uuid, key, step having count(*) > 1) as twice group by run_uuid"
                )
            )
            return {run_id: int(n) for run_id, n in rows}

    def drop_points_twice(self, run_id: str) -> int:
        """Keeps the last of the points of one metric at one step, which MLflow shows as its value, and says how many
        went."""
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

    def places(self, experiments: Iterable[str]) -> dict[str, int]:
        """{place of mlruns/ as a URI: runs and experiments that name it} over these experiments and their runs."""
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
        """Puts the place `new` where `old` begins a place, both URIs of mlruns/, and says in how many rows."""
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
        """Puts a run into another experiment, with its files at `files_uri`."""
        with self._engine.begin() as connection:
            connection.execute(
                text("update runs set experiment_id = :experiment, artifact_uri = :files where run_uuid = :run"),
                {"experiment": int(experiment_id), "files": files_uri, "run": run_id},
            )

    def backup(self, target: Path) -> None:
        """A whole copy of the sqlite file, also while others use it."""
        with (
            contextlib.closing(sqlite3.connect(self.file)) as source,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)

    def close(self) -> None:
        self._engine.dispose()

    def _column(self, query: str) -> list[str]:
        with self._engine.connect() as connection:
            return list(connection.execute(text(query)).scalars())


def is_database(uri: str) -> bool:
    """Whether a tracking URI names a database itself, and not a server before one."""
    return uri.partition(":")[0].partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql")


def with_driver(uri: str) -> str:
    """`postgresql://` with the driver that the extra `postgres` brings, which SQLAlchemy does not take of itself."""
    return uri.replace("postgresql://", "postgresql+psycopg2://", 1)


def without_password(uri: str) -> str:
    """A URI as it may be shown."""
    password = urlparse(uri).password
    return uri.replace(f":{password}@", ":***@", 1) if password else uri


def as_path(uri: str) -> str:
    """A file URI as a path, for the places that MLflow keeps as paths."""
    return unquote(urlparse(uri).path)
