"""The contract of all executors: tasks go in, messages come while they run, an outcome comes for each.

A task is a function, named so that another process can import it, and plain data:

    function(arguments, send, stop) -> plain data

`send(message)` reaches the `on_message` of the task, in the process that submitted it, and returns what that answers.
`stop()` says that the work is to be left off: the function then saves what it has and raises KeyboardInterrupt.
"""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

RETRIES = 2  # of a task whose worker died under it


@dataclass(frozen=True)
class Resources:
    """What a task takes: a share of a GPU (None: one where there are any), and threads (None: an equal part)."""

    gpus: float | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Task:
    """`function` is "package.module:name". A `coordinator` only waits for other tasks, so it takes no resources.
    `retries`: how often it is tried again when its worker dies."""

    name: str
    function: str
    arguments: Any
    on_message: Callable[[Any], Any] = lambda message: None
    environment: dict[str, str] = field(default_factory=dict)
    coordinator: bool = False
    retries: int = RETRIES


@dataclass(frozen=True)
class Outcome:
    """What came of a task: its value, or the error in words (the worker's traceback in `details`). `died` tells a
    worker that was lost, each time, from a function that raised."""

    task: Task
    value: Any = None
    error: str | None = None
    details: str = ""
    died: bool = False


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


def resolve(function: str) -> Callable:
    """The function that "package.module:name" names."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


@contextlib.contextmanager
def set_environment(variables: dict[str, str]) -> Iterator[None]:
    """Within it, the environment has these variables, too."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def in_words(error: BaseException) -> str:
    """An exception's type and text, on one line."""
    return f"{type(error).__name__}: {error}".replace("\n", "; ").removesuffix(": ")
