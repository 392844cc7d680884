"""Read the results of a detached run: a line for each training.

Nothing in these files is executed. A damaged line is reported, and the other lines are read.
"""

import dataclasses
import json
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from workbench.bounded_json import SIZE, parse_object
from workbench.errors import WorkbenchError
from workbench.training.config import TrainResult
from workbench.training.detached.plan import check_identity
from workbench.training.detached.schema import check_line

RESULTS = "results.jsonl"
_RESULT = {field.name for field in dataclasses.fields(TrainResult)}


@dataclass(frozen=True)
class Record:
    """A result with the labels of its plan.

    Attributes:
        result: The result.
        study: See `Planned`, as for mode, role, arm and owner.
        mode: See `Planned`.
        role: See `Planned`.
        arm: See `Planned`.
        owner: See `Planned`.
        started: Seconds since 1970, on the node's clock.
        ended: Seconds since 1970, on the node's clock.
        tables: {name: hash of the file} for each table of the training.
    """

    result: TrainResult
    study: str | None
    mode: str
    role: str
    arm: str
    owner: str | None
    started: float
    ended: float
    tables: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return one line: the fields of the result and of the record."""
        values = dataclasses.asdict(self)
        return json.dumps(values.pop("result") | values)

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Read one line.

        Raises:
            WorkbenchError: For a line that is not a result.
        """
        try:
            values = parse_object(text, finite=False)  # the loss of a training that diverged may be infinite
            check_line(values)
            result = TrainResult.from_json(json.dumps({k: v for k, v in values.items() if k in _RESULT}))
            record = cls(result, **{k: v for k, v in values.items() if k not in _RESULT})
            check_identity(result.key, record.mode, record.study)
            return dataclasses.replace(record, started=float(record.started), ended=float(record.ended))
        except WorkbenchError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WorkbenchError(f"It is not a result ({type(error).__name__}: {error}).") from error


def read_records(folder: Path) -> Iterator[tuple[str, Record | WorkbenchError]]:
    """Yield the place and the record of every line, or the error of a damaged line.

    A place is like "results.jsonl, line 3".
    """
    for file in numbered(folder, RESULTS):
        with open(file, "rb") as stream:
            for at, line in enumerate(iter(lambda: stream.readline(SIZE), b""), start=1):
                if not line.strip(b"\n"):
                    continue
                try:
                    yield f"{file.name}, line {at}", Record.from_json(line.decode())
                except (WorkbenchError, UnicodeDecodeError) as error:
                    yield f"{file.name}, line {at}", WorkbenchError(str(error)[:500])


def numbered(folder: Path, name: str) -> list[Path]:
    """Return the files NAME.suffix, NAME-2.suffix, ... in this order.

    Only the first edition wrote more than one.

    Raises:
        WorkbenchError: For a link, a pipe, a device or a folder of such a name.
    """
    stem, suffix = name.split(".")
    pattern = re.compile(rf"{re.escape(stem)}(?:-(\d+))?\.{suffix}")
    by_number = {int(match[1] or 1): file for file in folder.iterdir() if (match := pattern.fullmatch(file.name))}
    for file in by_number.values():
        if not stat.S_ISREG(file.lstat().st_mode):
            raise WorkbenchError(f"{file} must be a file, and not a link, pipe, device or folder. Copy the run again.")
    return [by_number[number] for number in sorted(by_number)]
