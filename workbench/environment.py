"""Read numbers that users set as environment variables."""

import os

from workbench.errors import WorkbenchError


def number(name: str, default: float) -> float:
    """Read an environment variable as a number.

    Args:
        name: Name of the variable.
        default: Value if the variable is not set.

    Returns:
        The number.

    Raises:
        WorkbenchError: If the variable is not a number.
    """
    text = os.environ.get(name, str(default))
    try:
        return float(text)
    except ValueError as error:
        raise WorkbenchError(f"{name} must be a number, got '{text}'. Set a number, or unset the variable.") from error
