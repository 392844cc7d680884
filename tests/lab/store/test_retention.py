"""What trainings leave on disk. Evidence: folders of known size and age go in, and which of them stay is looked up."""

import os

import filelock
import pytest

from workbench.errors import WorkbenchError
from workbench.lab.store.locations import runs_folder
from workbench.lab.store.retention import MARK, settle

MIB = 2**20


def left(name, megabytes=1, age=0):
    """A folder with one checkpoint and what a worker wrote beside it; of a training that diverged `age` seconds ago,
    or is just over."""
    folder = runs_folder() / "checkpoints" / name
    (folder / "step-00000030").mkdir(parents=True)
    (folder / "step-00000030" / "weights.safetensors").write_bytes(bytes(megabytes * MIB))
    (folder / "result.json").write_text("{}")
    if age:
        (folder / MARK).touch()
        os.utime(folder / MARK, (1e9 - age, 1e9 - age))
    return folder


def stay():
    return sorted(folder.name for folder in (runs_folder() / "checkpoints").iterdir())


def test_a_complete_training_leaves_nothing_and_a_diverged_one_its_checkpoints(root):
    settle(left("full-complete"), diverged=False)
    diverged = left("full-diverged")
    settle(diverged, diverged=True)
    assert stay() == ["full-diverged"]
    assert sorted(file.name for file in diverged.iterdir()) == [MARK, "step-00000030"]


def test_a_divergence_before_the_first_checkpoint_leaves_nothing(root):
    folder = runs_folder() / "checkpoints" / "full-early"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    settle(folder, diverged=True)
    assert stay() == []


def test_the_oldest_go_where_there_is_no_room(root, monkeypatch):
    """Five MiB of room, six of checkpoints: the one that diverged first goes. What is not marked, as of a training that
    is interrupted, stays."""
    monkeypatch.setenv("WORKBENCH_DIVERGED_GIB", str(5.5 / 1024))
    for name, age in (("full-oldest", 300), ("full-middle", 200), ("full-young", 100)):
        left(name, megabytes=2 if name == "full-oldest" else 1, age=age)
    left("full-interrupted")
    settle(left("full-now", megabytes=2), diverged=True)
    assert stay() == ["full-interrupted", "full-middle", "full-now", "full-young"]


def test_one_in_use_and_the_newest_stay_whatever_their_size(root, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DIVERGED_GIB", "0")
    left("full-replayed", age=100)
    left("full-other", age=200)
    (runs_folder() / "locks").mkdir(exist_ok=True)
    with filelock.FileLock(runs_folder() / "locks" / "full-replayed.lock"):
        settle(left("full-now"), diverged=True)
    assert stay() == ["full-now", "full-replayed"]


def test_a_room_that_is_no_number_is_refused(root, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DIVERGED_GIB", "plenty")
    with pytest.raises(WorkbenchError, match="WORKBENCH_DIVERGED_GIB"):
        settle(left("full-now"), diverged=True)
