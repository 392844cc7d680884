"""Tests of the retention of checkpoints. Evidence: which folders of known size and age stay on disk."""

import os

import filelock
import pytest

from workbench.errors import WorkbenchError
from workbench.lab.store.locations import runs_folder
from workbench.lab.store.retention import MARK, settle

MIB = 2**20


def training_folder(name, megabytes=1, age=0):
    """Make the folder of a training, with one checkpoint and a worker's result next to it.

    With an `age`, the training diverged that many seconds ago. Otherwise it has just ended.
    """
    folder = runs_folder() / "checkpoints" / name
    (folder / "step-00000030").mkdir(parents=True)
    (folder / "step-00000030" / "weights.safetensors").write_bytes(bytes(megabytes * MIB))
    (folder / "result.json").write_text("{}")
    if age:
        (folder / MARK).touch()
        os.utime(folder / MARK, (1e9 - age, 1e9 - age))
    return folder


def remaining_folders():
    return sorted(folder.name for folder in (runs_folder() / "checkpoints").iterdir())


def test_a_complete_training_leaves_nothing_and_a_diverged_one_its_checkpoints(root):
    settle(training_folder("full-complete"), diverged=False)
    diverged = training_folder("full-diverged")
    settle(diverged, diverged=True)
    assert remaining_folders() == ["full-diverged"]
    assert sorted(file.name for file in diverged.iterdir()) == [MARK, "step-00000030"]


def test_a_divergence_before_the_first_checkpoint_leaves_nothing(root):
    folder = runs_folder() / "checkpoints" / "full-early"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    settle(folder, diverged=True)
    assert remaining_folders() == []


def test_the_oldest_checkpoints_are_deleted_beyond_the_limit(root, monkeypatch):
    """With a limit of 5.5 MiB and 6 MiB of checkpoints, the training that diverged first loses its folder.

    Folders without a mark stay, for example those of interrupted trainings.
    """
    monkeypatch.setenv("WORKBENCH_DIVERGED_GIB", str(5.5 / 1024))
    for name, age in (("full-oldest", 300), ("full-middle", 200), ("full-young", 100)):
        training_folder(name, megabytes=2 if name == "full-oldest" else 1, age=age)
    training_folder("full-interrupted")
    settle(training_folder("full-now", megabytes=2), diverged=True)
    assert remaining_folders() == ["full-interrupted", "full-middle", "full-now", "full-young"]


def test_folders_in_use_and_the_newest_stay_whatever_their_size(root, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DIVERGED_GIB", "0")
    training_folder("full-replayed", age=100)
    training_folder("full-other", age=200)
    (runs_folder() / "locks").mkdir(exist_ok=True)
    with filelock.FileLock(runs_folder() / "locks" / "full-replayed.lock"):
        settle(training_folder("full-now"), diverged=True)
    assert remaining_folders() == ["full-now", "full-replayed"]


def test_a_limit_that_is_not_a_number_is_refused(root, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DIVERGED_GIB", "plenty")
    with pytest.raises(WorkbenchError, match=r"WORKBENCH_DIVERGED_GIB.*plenty"):
        settle(training_folder("full-now"), diverged=True)
