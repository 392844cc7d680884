"""A run as the rest of the workbench sees it: plain data, none of MLflow's types."""

from dataclasses import dataclass, field
from pathlib import Path

from workbench.lab.store.database import as_path


@dataclass(frozen=True)
class Run:
    """One run of the store: a training, or one execution of a notebook, a check, an evaluation or a replay.

    Attributes:
        status: RUNNING, FINISHED, FAILED or KILLED.
        started: Seconds since 1970.
        ended: Seconds since 1970; None while it runs.
        files_uri: Where its files are, as the database has it.
        parameters: As text, as the store keeps them.
        metrics: The last value of each.
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
    def folder(self) -> Path | None:
        """Where its files are on this machine, as the database has it; None where they are behind a server."""
        return Path(as_path(self.files_uri)) if self.files_uri.startswith(("file:", "/")) else None

    @property
    def seconds(self) -> float | None:
        """How long it took; None while it runs."""
        return None if self.ended is None else self.ended - self.started
