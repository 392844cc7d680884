"""Checkpoints of an unfinished training.

They are written whole or not at all, and verified when read. The last three are kept, and of the older ones as many as
a replay needs.

A checkpoint is a folder `step-00000120` with three files:

    weights.safetensors
    state.pt              optimizer, schedule, average, history
    manifest.json         the hashes of the two

It stores the step but no generator states, because every random draw is a function of (seed, step). So a training
that was killed reaches exactly the same weights.
"""

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from workbench.bounded_json import read
from workbench.errors import WorkbenchError
from workbench.files import sha256
from workbench.training.distributed import World

KEPT = 3
REWIND = 32  # steps that a replay can go back, even if every step has a checkpoint
STEP = re.compile(r"step-[0-9]{1,18}")  # name of a checkpoint
MANIFEST = "manifest.json"
MANIFEST_SIZE = 1 << 16  # characters
FILES = ("weights.safetensors", "state.pt")


class Checkpoints:
    """The checkpoints of one training, in one folder.

    Args:
        folder: The folder.
        every_seconds: Seconds between checkpoints.
        every_steps: Steps between checkpoints, instead of seconds.
        until: The last step whose checkpoint may be read. None: all.
    """

    def __init__(
        self,
        folder: str | Path,
        every_seconds: float = 60.0,
        every_steps: int | None = None,
        until: int | None = None,
    ):
        self.folder, self.every_seconds, self.every_steps = Path(folder), every_seconds, every_steps
        self.until = until
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Return whether it is time for a checkpoint."""
        if self.every_steps is not None:
            return step % self.every_steps == 0
        return time.monotonic() - self._last >= self.every_seconds

    def save(self, key: str, step: int, model: nn.Module, state: dict) -> None:
        """Write a checkpoint, then remove the older ones that `superseded` returns.

        The folder is written under a temporary name and then renamed.

        Args:
            key: The key of the training.
            step: The last step that is done.
            model: The network.
            state: All that the training needs besides the weights, as plain values and tensors.
        """
        place = self.folder / f"step-{step:08d}"
        part = self.folder / f".part-{os.getpid()}-{step:08d}"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, part / "weights.safetensors")
        torch.save(state, part / "state.pt")
        hashes = {file.name: sha256(file) for file in sorted(part.iterdir())}
        (part / MANIFEST).write_text(json.dumps({"key": key, "step": step, "files": hashes}))
        for file in part.iterdir():
            _to_disk(file)
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
        places = {_step(place): place for place in self._places()}
        for old in superseded(list(places)):
            shutil.rmtree(places[old], ignore_errors=True)
        self._last = time.monotonic()

    def latest(self, key: str, model: nn.Module, device: torch.device) -> dict | None:
        """Load the newest intact checkpoint of a training into `model`, and return its state.

        Damaged checkpoints are skipped.

        Args:
            key: The key of the training. Checkpoints of other trainings are skipped.
            model: The network to load the weights into.
            device: Where the tensors of the state go.

        Returns:
            The state, or None if no checkpoint fits.
        """
        for place in self._candidates():
            manifest = self._verified(place)
            if manifest is not None and manifest["key"] == key:
                model.load_state_dict(load_file(place / "weights.safetensors"))
                return torch.load(place / "state.pt", map_location=device, weights_only=True)
        return None

    def remove(self) -> None:
        """Remove the folder with all checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that may be read, the last first."""
        return [_step(place) for place in self._candidates()]

    def _candidates(self) -> list[Path]:
        return [place for place in self._places() if self.until is None or _step(place) <= self.until]

    def _places(self) -> list[Path]:
        places = self.folder.glob("step-*") if self.folder.is_dir() else []
        return sorted((place for place in places if STEP.fullmatch(place.name)), reverse=True)

    def _verified(self, place: Path) -> dict | None:
        try:
            manifest = read(place / MANIFEST, size=MANIFEST_SIZE)
            whole = all(sha256(place / name) == manifest["files"][name] for name in FILES)
            return manifest if whole and isinstance(manifest["key"], str) else None
        except (OSError, WorkbenchError, KeyError, TypeError):
            return None


class Resumable(Protocol):
    """What a checkpoint needs of a training: a network, and plain state next to its weights."""

    model: nn.Module
    device: torch.device

    def state_dict(self) -> dict:
        """Return all state except the weights."""
        ...

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        ...


class Resuming:
    """Restore a training from its last checkpoint, and write the next ones.

    All processes read the same checkpoint, and only the first process writes.

    Args:
        checkpoints: None: nothing is read or written.
        key: The key of the training.
        training: The training.
        world: The processes of the training.
    """

    def __init__(self, checkpoints: Checkpoints | None, key: str, training: Resumable, world: World):
        self.checkpoints, self.key, self.training, self.world = checkpoints, key, training, world

    def latest(self) -> int:
        """Load the last checkpoint into the training and return its step, or 0 if none exists.

        Raises:
            WorkbenchError: If this process reads another checkpoint than the first process.
        """
        state = None
        if self.checkpoints is not None:
            state = self.checkpoints.latest(self.key, self.training.model, self.training.device)
        step = 0 if state is None else state["step"]
        first = self.world.agree(step)
        if step != first:
            raise WorkbenchError(
                f"This process reads the checkpoint of step {step}, but the first process reads that of step {first}. "
                "Put mlruns/ on a file system that all processes share."
            )
        if state is not None:
            self.training.load_state_dict(state)
        return step

    def write(self, step: int, now: bool = False) -> None:
        """Write a checkpoint after this step if one is due, or if `now` is True."""
        if self.checkpoints is not None and self.world.first and (now or self.checkpoints.due(step)):
            state = {"step": step, **self.training.state_dict()}
            self.checkpoints.save(self.key, step, self.training.model, state)


def superseded(steps: list[int]) -> list[int]:
    """Return the steps whose checkpoints can be removed.

    The last three stay. The first of each stretch of REWIND steps stays too, back to one that is at least REWIND steps
    before the last. A replay starts 20 steps before the step that went wrong. From there back to a checkpoint, or to
    the beginning, it is then always fewer than 2 * REWIND steps or three checkpoints.

    Args:
        steps: Steps of all checkpoints, in any order.
    """
    ordered = sorted(steps)
    firsts = [b for a, b in zip([0, *ordered], ordered, strict=False) if a // REWIND != b // REWIND]
    before = [step for step in firsts if step <= ordered[-1] - REWIND][-1:]
    kept = {*ordered[-KEPT:], *before, *(step for step in firsts if step > ordered[-1] - REWIND)}
    return [step for step in ordered if step not in kept]


def _step(place: Path) -> int:
    return int(place.name.removeprefix("step-"))


def _to_disk(file: Path) -> None:
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())
