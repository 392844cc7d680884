"""Read JSON from outside this process: bounded in size, depth, and length of numbers and strings."""

import json
import math
import re
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError

SIZE = 64 << 20  # characters of one text
DEPTH = 32  # lists and objects within each other
TEXT = 1 << 20  # characters of one string
WHOLE = 2**63  # a whole number must be smaller, and larger than its negative
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def parse(text: str, *, size: int = SIZE, depth: int = DEPTH, longest: int = TEXT, finite: bool = True) -> Any:
    """Read one JSON value.

    Args:
        text: The text.
        size: Largest number of characters.
        depth: How deep lists and objects may nest.
        longest: Largest number of characters of one string.
        finite: Refuse NaN and infinity.

    Returns:
        The value.

    Raises:
        WorkbenchError: For text that is not JSON, or a value beyond the bounds.
    """
    if len(text) > size:
        raise WorkbenchError(f"the JSON text must have at most {size:,} characters, got {len(text):,}.")
    try:
        value = json.loads(text, parse_int=_whole)
    except RecursionError as error:
        raise WorkbenchError(f"the JSON value must nest at most {depth} deep.") from error
    except WorkbenchError:
        raise
    except ValueError as error:
        raise WorkbenchError(f"this is not JSON ({str(error)[:200]}).") from error
    level = [value]
    for _ in range(depth + 1):
        for item in level:
            _check_plain(item, longest, finite)
        level = [inner for item in level for inner in _inside(item)]
        if not level:
            return value
    raise WorkbenchError(f"the JSON value must nest at most {depth} deep.")


def parse_object(text: str, **bounds) -> dict[str, Any]:
    """Read one JSON object. The bounds are those of `parse`.

    Raises:
        WorkbenchError: As for `parse`, and for another value than an object.
    """
    value = parse(text, **bounds)
    if not isinstance(value, dict):
        raise WorkbenchError(f"this must be a JSON object, got a {type(value).__name__}.")
    return value


def read(file: Path, *, size: int = SIZE, **bounds) -> Any:
    """Read a file with one JSON value. The bounds are those of `parse`.

    Raises:
        WorkbenchError: As for `parse`, and for a file that cannot be read or is no plain file.
    """
    try:
        if file.exists() and not file.is_file():
            raise OSError("it is a folder, pipe or device")
        with open(file, "rb") as stream:
            text = stream.read(4 * size + 1).decode()  # a character has at most four bytes
    except (OSError, UnicodeDecodeError) as error:
        raise WorkbenchError(f"cannot read {file} ({error}). Restore the file.") from error
    try:
        return parse(text, size=size, **bounds)
    except WorkbenchError as error:
        raise WorkbenchError(f"cannot read {file}: {error} Restore the file.") from error


def _whole(digits: str) -> int:
    value = int(digits) if len(digits) <= 20 else WHOLE
    if abs(value) >= WHOLE:
        raise WorkbenchError(f"a whole number must lie between -2**63 and 2**63, got {digits[:30]}.")
    return value


def _inside(value) -> list:
    return [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []


def _check_plain(value, longest: int, finite: bool) -> None:
    if isinstance(value, str) and (len(value) > longest or _SURROGATE.search(value)):
        raise WorkbenchError(
            f"a JSON string must have at most {longest:,} characters that are text, got {value[:30]!r}."
        )
    if finite and isinstance(value, float) and not math.isfinite(value):
        raise WorkbenchError(f"a number must be finite, got {value}.")
