"""A plan: trainings as data, written where the studies are and run where the GPUs are.

A plan is a file with one JSON object per line: a header, then one line per training. A line has the key, the
configuration, the digest of the data, and the labels for the store. `python -m workbench.training` runs a plan.
"""

import dataclasses
import datetime
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from workbench.bounded_json import parse_object
from workbench.errors import WorkbenchError, shown, unknown
from workbench.files import local_path, write_whole
from workbench.training.config import TrainConfig, code_hash, planned, training_key
from workbench.training.inputs import source_digest

VERSION = 1
MODES = ("full", "quick")


@dataclass(frozen=True)
class Planned:
    """One training to run, with its labels for the store.

    Attributes:
        key: See `training_key`.
        config: The configuration.
        data_digest: Hash of the data.
        study: The study that needs the training, or None.
        mode: full or quick.
        role: Of the training in its study, such as screen or confirm.
        arm: Label of the arm.
        owner: The notebook run that needs the training, or None.

    Raises:
        WorkbenchError: At construction, for a wrong key, mode, study name or label.
    """

    key: str
    config: TrainConfig
    data_digest: str
    study: str | None = None
    mode: str = "full"
    role: str = "screen"
    arm: str = ""
    owner: str | None = None

    def __post_init__(self):
        check_identity(self.key, self.mode, self.study)
        for name in ("data_digest", "role", "arm"):
            if not isinstance(getattr(self, name), str):
                raise WorkbenchError(f"`{name}` must be text, got {shown(getattr(self, name))}.")

    @classmethod
    def of(cls, config: TrainConfig, **labels: str | None) -> "Planned":
        """Make the line of a training, with the key and the data digest of this machine.

        Args:
            config: The configuration.
            **labels: study, mode, role, arm and owner. The default arm is the model.
        """
        config, digest = planned(config), source_digest(config)
        return cls(training_key(config, digest), config, digest, **{"arm": config.model, **labels})


@dataclass(frozen=True)
class Plan:
    """The trainings of a plan, and the hash of the code that made their keys."""

    code: str
    trainings: list[Planned]


def check_identity(key: str, mode: str, study: str | None) -> None:
    """Check values that become file names, tags and searches of the store.

    Raises:
        WorkbenchError: For a key that is not 64 hex digits, an unknown mode, or a study name with other characters.
    """
    if not isinstance(key, str) or not re.fullmatch("[0-9a-f]{64}", key):
        raise WorkbenchError(f"`key` must be 64 hex digits, got {shown(key)}.")
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if study is not None and not (isinstance(study, str) and re.fullmatch(r"[\w .-]*", study)):
        raise WorkbenchError(f"`study` must be made of letters, digits, spaces, dots and dashes, got {shown(study)}.")


def write_plan(file: str | Path, trainings: Iterable[Planned]) -> Path:
    """Write a plan, whole or not at all.

    Args:
        file: The file. `~` is allowed.
        trainings: The trainings. Of several with the same key and mode only the first is written.

    Returns:
        The file that was written.

    Raises:
        WorkbenchError: If the file cannot be written.
    """
    unique: dict[tuple[str, str], Planned] = {}
    for training in trainings:
        unique.setdefault((training.key, training.mode), training)
    lines = [dataclasses.asdict(training) for training in unique.values()]
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    header = {"plan": VERSION, "code": code_hash(), "torch": torch.__version__, "made": made, "trainings": len(lines)}
    text = "".join(json.dumps(line) + "\n" for line in (header, *lines))
    return write_whole(local_path(file), lambda path: path.write_text(text))


def read_plan(file: str | Path) -> Plan:
    """Read and check a plan.

    Raises:
        WorkbenchError: For a file that is missing, not a plan, of another version, or truncated. For a wrong line, with
            its number.
    """
    path = local_path(file)
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is a folder, pipe or device")
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"Cannot read the plan {path} ({error}). Write one with `study NAME --plan`.") from error
    header = _object(lines[0], path, 1) if lines else {}
    if header.get("plan") != VERSION:
        raise WorkbenchError(
            f"{path} must be a plan of version {VERSION}, got version {shown(header.get('plan'))} in its first line. "
            "Write it again with `study NAME --plan`, from the same code as here."
        )
    if len(lines) - 1 != header.get("trainings"):
        raise WorkbenchError(
            f"{path} must have {shown(header.get('trainings'))} trainings, got {len(lines) - 1}. Copy it again."
        )
    return Plan(header.get("code", ""), [_planned(line, path, at) for at, line in enumerate(lines[1:], start=2)])


def _planned(line: str, path: Path, at: int) -> Planned:
    values = _object(line, path, at)
    try:
        return Planned(**{**values, "config": TrainConfig.from_dict(values["config"])})
    except (WorkbenchError, KeyError, TypeError) as error:
        raise WorkbenchError(f"{path}, line {at}: {error}") from error


def _object(line: str, path: Path, at: int) -> dict:
    try:
        return parse_object(line)
    except WorkbenchError as error:
        raise WorkbenchError(f"{path}, line {at}: {error} Write the plan again with `study NAME --plan`.") from error
