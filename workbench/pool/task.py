"""Tasks, which go to a worker, and their outcomes.

A task names a function, which another process can import, and its arguments as plain data:

    function(arguments, send, stop) -> plain data

`send(message)` calls the task's `on_message` in the process that submitted it, and returns the answer. `stop()`
returns whether the function must end early. If so, the function saves its state and raises KeyboardInterrupt.
"""

import importlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from workbench.environment import changed
from workbench.errors import WorkbenchError
from workbench.user_errors import of_user

RETRIES = 2  # of a task whose worker died
STOPPED = "stopped"  # error of a task that saved its state and ended early


@dataclass(frozen=True)
class Task:
    """Function call to run in a worker.

    Attributes:
        name: Identifies the task for its submitter.
        function: Name of the function, as "package.module:name".
        arguments: First argument of the function, plain data.
        on_message: Answers the messages of the function.
        environment: Environment variables to set while the function runs.
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
    """Value or error of a task.

    Attributes:
        task: The task as it was submitted.
        value: What the function returned.
        error: Type and text of the error, on one line. None: no error.
        details: Traceback from the worker.
        died: Whether the worker died at every try. False if the function raised.
    """

    task: Task
    value: Any = None
    error: str | None = None
    details: str = ""
    died: bool = False

    @property
    def stopped(self) -> bool:
        """Whether the task saved its state and ended early on request."""
        return self.error == STOPPED

    @property
    def unexpected(self) -> bool:
        """Whether the function raised an error that the user cannot correct. `details` then is its traceback."""
        return bool(self.details) and self.error is not None and not self.error.startswith(WorkbenchError.__name__)


def run_task(function: str, arguments: Any, environment: dict[str, str], send: Callable, stop: Callable) -> tuple:
    """Run a task's function in this process.

    Args:
        function: Name of the function, as "package.module:name".
        arguments: First argument of the function.
        environment: Environment variables to set while the function runs.
        send: Second argument of the function: sends a message and returns the answer.
        stop: Third argument of the function: returns whether it must end early.

    Returns:
        ("value", value) or ("error", text, traceback).
    """
    with changed(environment):
        try:
            return "value", resolve(function)(arguments, send, stop)
        except BaseException as error:  # also the SystemExit of a user's network, and panics of extensions in Rust
            return "error", *failure(error)


def failure(error: BaseException) -> tuple[str, str]:
    """Return the `error` and the `details` of an outcome, for what a task's function raised."""
    mistake = of_user(error)
    if mistake is None and isinstance(error, KeyboardInterrupt):
        return STOPPED, ""
    return in_words(mistake or error), "".join(traceback.format_exception(error))


def resolve(function: str) -> Callable:
    """Import a function by its name, such as "package.module:name"."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def in_words(error: BaseException) -> str:
    """Return the type and text of an exception, on one line."""
    return f"{type(error).__name__}: {error}".replace("\n", "; ").removesuffix(": ")
