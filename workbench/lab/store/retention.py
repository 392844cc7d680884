"""Retention of checkpoints after a training has ended.

A diverged training keeps its checkpoints, so that a replay can start before the divergence. Other trainings keep none,
also those that collapsed: they went through all their steps.
All kept checkpoints together may take WORKBENCH_DIVERGED_GIB (default 10) GiB. Beyond that the oldest are deleted.
"""

import shutil
from pathlib import Path

from workbench.environment import number
from workbench.lab.executors.lifetime import is_held
from workbench.lab.store.locations import runs_folder
from workbench.outcomes import DIVERGED
from workbench.training.checkpoint import Checkpoints

MARK = DIVERGED  # name of a marker file next to the checkpoints of a diverged training


def settle(folder: Path, *, diverged: bool) -> None:
    """Clear the folder of a training that has ended.

    Args:
        folder: The training's folder with its checkpoints.
        diverged: Whether the training diverged. If so, its checkpoints stay.

    Raises:
        WorkbenchError: If WORKBENCH_DIVERGED_GIB is not a number.
    """
    if not diverged or not Checkpoints(folder).steps():
        Checkpoints(folder).remove()
        return
    for file in [file for file in folder.iterdir() if file.is_file()]:
        file.unlink()
    (folder / MARK).touch()
    _make_room(folder, diverged_bytes())


def diverged_bytes() -> float:
    """Return WORKBENCH_DIVERGED_GIB in bytes, the limit for all checkpoints that stay."""
    return number("WORKBENCH_DIVERGED_GIB", 10) * 2**30


def _make_room(newest: Path, limit: float) -> None:
    """Delete the oldest marked folders until the rest fits, except `newest` and those in use."""
    marks = sorted(newest.parent.glob(f"*/{MARK}"), key=lambda mark: mark.stat().st_mtime, reverse=True)
    room = limit - bytes_of(newest)
    for folder in [mark.parent for mark in marks if mark.parent != newest]:
        room -= bytes_of(folder)
        if room < 0 and not is_held(runs_folder() / "locks" / f"{folder.name}.lock"):
            shutil.rmtree(folder, ignore_errors=True)


def bytes_of(place: Path) -> int:
    """Return the size of a file, or of all files in a folder, in bytes."""
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.lstat().st_size for file in files if file.is_file())
