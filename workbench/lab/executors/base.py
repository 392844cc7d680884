"""The contract of all executors: tasks go in, messages come meanwhile, outcomes come back."""

from dataclasses import dataclass
from typing import Protocol

from workbench.pool import Outcome, Task


@dataclass(frozen=True)
class Resources:
    """What one task takes.

    Attributes:
        gpus: Share of a GPU. None: one GPU if the machine has any.
        threads: CPU threads. None: an equal part of the cores.
    """

    gpus: float | None = None
    threads: int | None = None


class Executor(Protocol):
    """Runs up to `workers` tasks at a time."""

    workers: int

    def has_room(self) -> bool:
        """Say whether a task that you submit now would start now."""

    def submit(self, task: Task) -> None:
        """Take a task. Tasks start in the order of submission, each as soon as there is room."""

    def wait(self) -> Outcome | None:
        """Answer messages until a task ends, and return its outcome. None: no task is running."""

    def stop(self, at_once: bool = False) -> None:
        """Ask the running tasks to save and stop, then end all workers. No task runs afterwards.

        Args:
            at_once: End the workers without waiting for the tasks.
        """
