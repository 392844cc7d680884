"""The contract of all executors: tasks go in, messages come while they run, an outcome comes for each."""

from dataclasses import dataclass
from typing import Protocol

from workbench.pool import Outcome, Task


@dataclass(frozen=True)
class Resources:
    """What a task takes: a share of a GPU (None: one where there are any), and threads (None: an equal part)."""

    gpus: float | None = None
    threads: int | None = None


class Executor(Protocol):
    """Runs up to `workers` tasks at a time."""

    workers: int

    def has_room(self) -> bool:
        """Whether a task that is submitted now would start now."""

    def submit(self, task: Task) -> None:
        """Takes a task, which starts as soon as there is room: in the order of submission."""

    def wait(self) -> Outcome | None:
        """Answers messages until a task has ended, and returns its outcome; None when there is none under way."""

    def stop(self, at_once: bool = False) -> None:
        """Asks the tasks under way to save what they have and stop, then ends all workers. Nothing is under way
        afterwards."""
