"""A task and its outcome: what goes to a worker, and what comes back.

A task is a function, named so that another process can import it, and plain data:

    function(arguments, send, stop) -> plain data

`send(message)` reaches the `on_message` of the task, in the process that submitted it, and returns its answer.
`stop()` asks the function to end early. The function then saves what it has and raises KeyboardInterrupt.
"""

import contextlib
import importlib
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

RETRIES = 2  # of a task whose worker died under it
STOPPED = "stopped"  # the error of a task that saved what it had and ended early


@dataclass(frozen=True)
class Task:
    """One piece of work.

    Attributes:
        name: Identifies the task to whoever submitted it.
        function: "package.module:name".
        arguments: Plain data, the function's first argument.
        on_message: Answers the messages of the function.
        environment: Variables that are set while the function runs.
        retries: How often the task runs again after its worker died.
    """

    name: str
    function: str
    arguments: Any
    on_message: Callable[[Any], Any] = lambda message: None
    environment: dict[str, str] = field(default_factory=dict)
    retries: int = RETRIES


@dataclass(frozen=True)
class Outcome:
    """The value of a task, or its error.

    Attributes:
        task: The task as it was submitted.
        value: What the function returned.
        error: Type and text of the error, on one line.
        details: The worker's traceback.
        died: Whether the worker was lost each time. False where the function raised.
    """

    task: Task
    value: Any = None
    error: str | None = None
    details: str = ""
    died: bool = False

    @property
    def stopped(self) -> bool:
        """Whether the task saved what it had and ended early, as it was asked to."""
        return self.error == STOPPED


def run_task(function: str, arguments: Any, environment: dict[str, str], send: Callable, stop: Callable) -> tuple:
    """Run a task's function in this process.

    Returns:
        ("value", value) or ("error", text, traceback).
    """
    with set_environment(environment):
        try:
            return "value", resolve(function)(arguments, send, stop)
        except KeyboardInterrupt:
            return "error", STOPPED, ""
        except Exception as error:
            return "error", in_words(error), traceback.format_exc()


def resolve(function: str) -> Callable:
    """Import the function that "package.module:name" names."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


@contextlib.contextmanager
def set_environment(variables: dict[str, str]) -> Iterator[None]:
    """Add these variables to the environment, for as long as the context lasts."""
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
    """Return an exception's type and text, on one line."""
    return f"{type(error).__name__}: {error}".replace("\n", "; ").removesuffix(": ")
