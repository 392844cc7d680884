"""Errors that nobody expected: the traceback goes into a file, and the user reads one sentence."""

import contextlib
import os
import tempfile
import traceback
from datetime import datetime
from pathlib import Path

from workbench.paths import root

FOLDER = Path("mlruns") / "errors"  # below the root
PREFIX = "workbench-error-"
KEPT = 50  # files in a folder
LONGEST = 200  # characters of an error's text in the sentence
OPTION = "--debug"
HELP = "Print the traceback of an error, too."


def explain(error: BaseException) -> str:
    """Save the traceback of an error and say where it is.

    Returns:
        One sentence with the error and the file.
    """
    words = " ".join("".join(traceback.format_exception_only(error)).split())
    what = words if len(words) <= LONGEST else words[:LONGEST] + " ..."
    return f"unexpected error, {what} ({saved(''.join(traceback.format_exception(error)))}; {OPTION} prints it)."


def saved(text: str) -> str:
    """Save a traceback and say where it is.

    The file goes below the root, or into the temporary folder if that cannot be written.

    Returns:
        A clause with the file's path.
    """
    file = _save(text)
    return f"the traceback is in {file}" if file is not None else "no folder takes the traceback"


def _save(text: str) -> Path | None:
    name = f"{PREFIX}{datetime.now():%Y%m%d-%H%M%S-%f}-{os.getpid()}.txt"
    for folder in _folders():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / name
            try:
                file.write_text(text, encoding="utf-8", errors="backslashreplace")
            except OSError:
                file.unlink(missing_ok=True)
                raise
            _remove_oldest(folder)
            return file
    return None


def _remove_oldest(folder: Path) -> None:
    """Keep the newest files. Their names begin with the time."""
    for file in sorted(folder.glob(f"{PREFIX}*.txt"))[:-KEPT]:
        with contextlib.suppress(OSError):
            file.unlink()


def _folders() -> list[Path]:
    folders = []
    with contextlib.suppress(ValueError, OSError):  # no workbench here, or no working directory
        folders.append(root() / FOLDER)
    with contextlib.suppress(OSError):
        folders.append(Path(tempfile.gettempdir()))
    return folders
