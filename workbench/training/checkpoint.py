"""Checkpoints of a training under way: written whole or not at all, verified when read, the last three kept, and of
those before them as many as a replay needs.

A checkpoint is a folder `step-00000120` with `weights.safetensors`, `state.pt` (optimizer, schedule, average, history)
and `manifest.json`, the hashes of the two. It stores the step and no generator states, for every draw of a training is
a function of (seed, step). So a training that was killed goes on to the very same weights.
"""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from workbench.errors import WorkbenchError
from workbench.files import sha256
from workbench.training.distributed import World

KEPT = 3
REWIND = 32  # steps: what goes wrong now can be replayed from before it, where steps are slower than checkpoints, too
MANIFEST = "manifest.json"


class Checkpoints:
    """The checkpoints of one training in `folder`, named by its key, written every so many seconds or steps.

    `until` leaves out those of later steps when it looks for the latest.
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
        """Whether it is time for another."""
        if self.every_steps is not None:
            return step % self.every_steps == 0
        return time.monotonic() - self._last >= self.every_seconds

    def save(self, key: str, step: int, model: nn.Module, state: dict) -> None:
        """Writes beside its place, then renames; then removes what `superseded` names."""
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
        """Loads the newest whole checkpoint of this training into `model` and returns its state; a damaged one is
        passed over for the one before it. None where there is none."""
        for place in self._candidates():
            manifest = self._verified(place)
            if manifest is not None and manifest["key"] == key:
                model.load_state_dict(load_file(place / "weights.safetensors"))
                return torch.load(place / "state.pt", map_location=device, weights_only=True)
        return None

    def remove(self) -> None:
        """Takes them away, when the training is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def steps(self) -> list[int]:
        """The steps of which there are checkpoints to start from, the last first."""
        return [_step(place) for place in self._candidates()]

    def _candidates(self) -> list[Path]:
        return [place for place in self._places() if self.until is None or _step(place) <= self.until]

    def _places(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True) if self.folder.is_dir() else []

    def _verified(self, place: Path) -> dict | None:
        try:
            manifest = json.loads((place / MANIFEST).read_text())
            whole = all(sha256(place / name) == digest for name, digest in manifest["files"].items())
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return manifest if whole else None


class Resumable(Protocol):
    """A training as its checkpoints see it: a network, and plain state beside its weights."""

    model: nn.Module
    device: torch.device

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


class Resuming:
    """Brings a training back to its last checkpoint and writes the next ones, where it has checkpoints.

    All processes read the same checkpoint, and the first one writes.
    """

    def __init__(self, checkpoints: Checkpoints | None, key: str, training: Resumable, world: World):
        self.checkpoints, self.key, self.training, self.world = checkpoints, key, training, world

    def latest(self) -> int:
        """Load the last checkpoint into the training and return its step, or 0 where no checkpoint exists.

        Raises:
            WorkbenchError: If this process sees another checkpoint than the first.
        """
        state = None
        if self.checkpoints is not None:
            state = self.checkpoints.latest(self.key, self.training.model, self.training.device)
        step = 0 if state is None else state["step"]
        first = self.world.agree(step)
        if step != first:
            raise WorkbenchError(
                f"This process sees the checkpoint of step {step}, and the first process that of step {first}. "
                "Put mlruns/ where all of them see it."
            )
        if state is not None:
            self.training.load_state_dict(state)
        return step

    def write(self, step: int, now: bool = False) -> None:
        """Write a checkpoint after this step where one is due, or `now`."""
        if self.checkpoints is not None and self.world.first and (now or self.checkpoints.due(step)):
            state = {"step": step, **self.training.state_dict()}
            self.checkpoints.save(self.key, step, self.training.model, state)


def superseded(steps: list[int]) -> list[int]:
    """Of the checkpoints of these steps, those that need not be kept.

    The last three stay, and the first of each stretch of REWIND steps, back to one that lies at least REWIND before the
    last. So wherever it goes wrong, from the step 20 before that to the checkpoint to start from, or to the beginning,
    are fewer than 2 * REWIND steps or three checkpoints.
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
