"""Numbers that a user sets as environment variables."""

import os

from workbench.errors import WorkbenchError


def number(name: str, default: float) -> float:
    """The variable `name`, or its default. Raises: WorkbenchError where it is no number."""
    text = os.environ.get(name, str(default))
    try:
        return float(text)
    except ValueError as error:
        raise WorkbenchError(f"{name} (={text}) must be a number.") from error
