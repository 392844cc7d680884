"""A run as plain data, without MLflow's types."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from workbench.lab.store.database import as_path

IDENTITY = re.compile(r".*/\d+/\d+/\d+")  # as `lifetime.whoami` writes it


@dataclass(frozen=True)
class Run:
    """One run of the store: a training, notebook execution, check, evaluation or replay.

    Attributes:
        id: The run id.
        name: The name that MLflow's pages show.
        status: RUNNING, FINISHED, FAILED or KILLED.
        started: Seconds since 1970.
        ended: Seconds since 1970. None while the run is RUNNING.
        files_uri: Location of the run's files, from the database.
        tags: Tags by name.
        parameters: Parameters by name, as text.
        metrics: The last value of each metric, by name.
    """

    id: str
    name: str
    status: str
    started: float
    ended: float | None
    files_uri: str
    tags: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def process(self) -> str:
        """Return the identity of the process that writes the run. Empty if the tag names none."""
        identity = self.tags.get("process", "")
        return identity if IDENTITY.fullmatch(identity) else ""

    @property
    def folder(self) -> Path | None:
        """Return the folder of the run's files, from the database. None if they are behind a server."""
        return as_folder(self.files_uri)

    @property
    def seconds(self) -> float | None:
        """Return how long the run took. None while it is RUNNING."""
        return None if self.ended is None else self.ended - self.started


def as_folder(files_uri: str) -> Path | None:
    """Return the folder at a location from the database. None: the files are behind a server."""
    return Path(as_path(files_uri)) if files_uri.startswith(("file:", "/")) else None
