"""Environment variables. No other file of the package reads them."""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from workbench.errors import WorkbenchError, shown


def text(name: str) -> str | None:
    """Return the value of a variable. None: it is not set, or empty."""
    return os.environ.get(name) or None


def is_set(name: str) -> bool:
    """Return whether a variable has a value."""
    return text(name) is not None


def number(name: str, default: float, at_least: float = 0) -> float:
    """Read a variable as a number.

    Args:
        name: Name of the variable.
        default: Value if the variable is not set.
        at_least: The smallest allowed number.

    Raises:
        WorkbenchError: If the variable is not a finite number of this size.
    """
    value = text(name)
    if value is None:
        return default
    try:
        read = float(value)
    except ValueError:
        read = math.nan
    if not at_least <= read < math.inf:
        raise WorkbenchError(
            f"{name} must be a finite number of at least {at_least:g}, got {shown(value)}. "
            f"Set such a number, or unset the variable to use {default:g}."
        )
    return read


def whole(name: str, at_least: int = 0) -> int | None:
    """Read a variable as a whole number. None: it is not set.

    Args:
        name: Name of the variable.
        at_least: The smallest allowed number.

    Raises:
        WorkbenchError: If the variable is not a whole number of this size.
    """
    value = text(name)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) >= at_least):
        rule = f"{name} must be a whole number from {at_least} to 999999999, got {shown(value)}"
        raise WorkbenchError(f"{rule}. Set such a number, or unset the variable.")
    return int(value)


def folder(name: str) -> Path | None:
    """Read a variable as the path of a folder, which need not exist. None: it is not set.

    Raises:
        WorkbenchError: If no folder can have this path.
    """
    value = text(name)
    try:
        return None if value is None else expanded(value)
    except ValueError as error:
        raise WorkbenchError(f"{name} must be the path of a folder, got {shown(value)} ({error}).") from error


def expanded(path: str | Path) -> Path:
    """Return a path with its leading `~` replaced by the home folder. Nothing needs to exist there.

    Raises:
        ValueError: The cause, if nothing can have this path: the home folder of nobody, a NUL, a loop of links, a name
            that is too long, or a folder that may not be searched.
    """
    try:
        whole = Path(path).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(whole)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(getattr(error, "strerror", None) or error) from error
    return whole


def inherited(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return all variables, and more, for a child process."""
    return {**os.environ, **(more or {})}


@contextlib.contextmanager
def changed(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables within the context."""
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


def set_default(name: str, value: str) -> None:
    """Set a variable for libraries that read it, unless the user did."""
    os.environ.setdefault(name, value)
