"""Errors that nobody expected: the traceback goes into a file, and the user reads one sentence."""

import contextlib
import os
import tempfile
import time
import traceback
from pathlib import Path

from workbench.paths import root

FOLDER = Path("mlruns") / "errors"  # below the root
OPTION = "--debug"
LONGEST = 200  # characters of an error's text in the sentence


def explain(error: BaseException) -> str:
    """Save the traceback of an error and say where it is.

    The file goes below the root, or into the temporary folder where that cannot be written.

    Returns:
        One sentence with the error and the file.
    """
    text = "".join(traceback.format_exception(error))
    words = " ".join(str(error).split())
    what = f"{type(error).__name__}: {words[:LONGEST]}" if words else type(error).__name__
    file = _save(text)
    where = f"The traceback is in {file}" if file is not None else "No folder takes the traceback"
    return f"unexpected error, {what}. {where}; `{OPTION}` prints it."


def _save(text: str) -> Path | None:
    name = f"{time.strftime('%Y-%m-%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in _folders():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
            return folder / name
    return None


def _folders() -> list[Path]:
    try:
        below_root = [root() / FOLDER]
    except (ValueError, OSError):  # no workbench here, or no working directory
        below_root = []
    try:
        return [*below_root, Path(tempfile.gettempdir())]
    except OSError:
        return below_root
