"""Paths of a run's files: they stay within the run."""

import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import WorkbenchError

if TYPE_CHECKING:  # torch takes as long to import as MLflow, and who only reads the store does without
    pass


def within_run(path: str) -> str:
    """The path of a run's file, when it names one of the run. Raises: WorkbenchError for one that leads out of it."""
    for text in (path, urllib.parse.unquote(path)):
        if not text.strip("/") or text.startswith(("/", "~", "file:")) or "\\" in text or ".." in text.split("/"):
            raise WorkbenchError(
                f"`{path}` must be a path within the run, such as tables/mine.csv: no .., nothing absolute."
            )
    return path


def refuse_link(folder: Path, path: str) -> None:
    """Raises: WorkbenchError for a link in a run's folder that leads out of it, which MLflow follows when it reads."""
    if not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise WorkbenchError(f"{folder / path} is a link that leads out of the run: remove it.")
