"""A plan: trainings as pure data, written where the studies are and run where the GPUs are.

One JSON object a line: a header, then a line a training with its key, its configuration, the digest of its data and
what the store wants to know of it. `python -m workbench.training` runs a plan, see run.py.
"""

import dataclasses
import datetime
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.files import write_whole
from workbench.training.config import TrainConfig, code_hash, planned, training_key
from workbench.training.inputs import source_digest

VERSION = 1
MODES = ("full", "quick")


@dataclass(frozen=True)
class Planned:
    """One training to run: `study` and `owner` are the study and the notebook run that ask for it, where there are
    such; `mode`, `role` and `arm` are what the store has of it.

    Raises: WorkbenchError, at construction, for a key that is none and an unknown mode.
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
                raise WorkbenchError(f"`{name}` (={getattr(self, name)!r}) must be text.")

    @classmethod
    def of(cls, config: TrainConfig, **asked: str | None) -> "Planned":
        """The plan's line for `config`, with the key and the data as they are here."""
        config, digest = planned(config), source_digest(config)
        return cls(training_key(config, digest), config, digest, **{"arm": config.model, **asked})


@dataclass(frozen=True)
class Plan:
    """`trainings`, and the hash of the code that their keys were made with."""

    code: str
    trainings: list[Planned]


def check_identity(key: str, mode: str, study: str | None) -> None:
    """Refuses what could not name a run of the store: these go into file names, tags and searches."""
    if not isinstance(key, str) or not re.fullmatch("[0-9a-f]{64}", key):
        raise WorkbenchError(f"`key` (={key!r}) must be 64 hex digits.")
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if study is not None and not (isinstance(study, str) and re.fullmatch(r"[\w .-]*", study)):
        raise WorkbenchError(f"`study` (={study!r}) must be made of letters, digits, spaces, dots and dashes.")


def write_plan(file: str | Path, trainings: Iterable[Planned]) -> Path:
    """Writes a plan, whole or not at all; a training that is asked for twice stands in it once.

    Raises: WorkbenchError where the file cannot be written.
    """
    once: dict[tuple[str, str], Planned] = {}
    for training in trainings:
        once.setdefault((training.key, training.mode), training)
    lines = [dataclasses.asdict(training) for training in once.values()]
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    header = {"plan": VERSION, "code": code_hash(), "torch": torch.__version__, "made": made, "trainings": len(lines)}
    text = "".join(json.dumps(line) + "\n" for line in (header, *lines))
    return write_whole(Path(file).expanduser(), lambda path: path.write_text(text))


def read_plan(file: str | Path) -> Plan:
    """Reads and checks a plan.

    Raises: WorkbenchError for a file that is missing, no plan, of a newer version, cut off, or has a line that is
    none; the line is named.
    """
    path = Path(file).expanduser()
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WorkbenchError(f"cannot read the plan {path} ({error}): write one with `study NAME --plan`.") from error
    header = _object(lines[0], path, 1) if lines else {}
    if header.get("plan") != VERSION:
        raise WorkbenchError(
            f"{path} must be a plan of version {VERSION}, but its first line says {header.get('plan')}: write it again "
            "with `study NAME --plan`, from the same code as here."
        )
    if len(lines) - 1 != header.get("trainings"):
        raise WorkbenchError(f"{path} has {len(lines) - 1} trainings, not {header.get('trainings')}: copy it again.")
    return Plan(header.get("code", ""), [_planned(line, path, at) for at, line in enumerate(lines[1:], start=2)])


def _planned(line: str, path: Path, at: int) -> Planned:
    values = _object(line, path, at)
    try:
        return Planned(**{**values, "config": TrainConfig.from_dict(values["config"])})
    except (WorkbenchError, KeyError, TypeError) as error:
        raise WorkbenchError(f"{path}, line {at}: {error}") from error


def _object(line: str, path: Path, at: int) -> dict:
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise WorkbenchError(f"{path}, line {at} is no JSON object: write the plan again with `study NAME --plan`.")
    return values
