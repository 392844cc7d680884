"""Checks that the paths of a run's files stay within the run."""

import urllib.parse
from pathlib import Path

from workbench.errors import WorkbenchError


def within_run(path: str) -> str:
    """Return the path of a run's file unchanged, if it is within the run.

    Raises:
        WorkbenchError: If the path is empty, absolute, or contains `..` or a backslash, also URL-encoded.
    """
    for text in (path, urllib.parse.unquote(path)):
        if not text.strip("/") or text.startswith(("/", "~", "file:")) or "\\" in text or ".." in text.split("/"):
            raise WorkbenchError(
                f"`{path}` must be a path within the run. Use a relative path without .., such as tables/mine.csv."
            )
    return path


def refuse_link(folder: Path, path: str) -> None:
    """Refuse a link that leads out of a run's folder.

    MLflow follows links when it reads.

    Raises:
        WorkbenchError: If the path leads out of the folder.
    """
    if not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise WorkbenchError(f"{folder / path} is a link that leads out of the run. Remove the link.")
