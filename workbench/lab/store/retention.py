"""What a training leaves on disk once the store has its result: nothing, or, where it diverged, its checkpoints, from
which a replay goes back to before it went wrong. Beyond WORKBENCH_DIVERGED_GIB (10) together, the oldest go."""

import shutil
from pathlib import Path

from workbench.environment import number
from workbench.lab.executors.lifetime import is_held
from workbench.lab.store.locations import runs_folder
from workbench.training.checkpoint import Checkpoints

MARK = "diverged"  # a file beside the checkpoints of a training that did


def settle(folder: Path, *, diverged: bool) -> None:
    """Clears the folder of a training that is over.

    Raises: WorkbenchError for a WORKBENCH_DIVERGED_GIB that is no number.
    """
    if not diverged or not Checkpoints(folder).steps():
        Checkpoints(folder).remove()
        return
    for file in [file for file in folder.iterdir() if file.is_file()]:
        file.unlink()
    (folder / MARK).touch()
    _make_room(folder, diverged_bytes())


def diverged_bytes() -> float:
    """WORKBENCH_DIVERGED_GIB in bytes: the room for the checkpoints of all diverged trainings."""
    return number("WORKBENCH_DIVERGED_GIB", 10) * 2**30


def _make_room(newest: Path, limit: float) -> None:
    """Removes the folders that were marked longest ago, until the rest fits; never `newest`, nor one in use."""
    marks = sorted(newest.parent.glob(f"*/{MARK}"), key=lambda mark: mark.stat().st_mtime, reverse=True)
    room = limit - bytes_of(newest)
    for folder in [mark.parent for mark in marks if mark.parent != newest]:
        room -= bytes_of(folder)
        if room < 0 and not is_held(runs_folder() / "locks" / f"{folder.name}.lock"):
            shutil.rmtree(folder, ignore_errors=True)


def bytes_of(place: Path) -> int:
    """The size of a file, or of all files in a folder, in bytes."""
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.lstat().st_size for file in files if file.is_file())
