"""What a detached run leaves behind, read: one line a finished training, and the tables that a training asked for.

Nothing in these files is executed, and a line that is damaged is told from those that are not.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import WorkbenchError
from workbench.training.config import TrainResult
from workbench.training.detached.plan import check_identity

FINISHED = ("complete", "diverged")
_RESULT = {field.name for field in dataclasses.fields(TrainResult)}


@dataclass(frozen=True)
class Record:
    """A result with what its plan says of it; `started` and `ended` are seconds since 1970, on the node's clock."""

    result: TrainResult
    study: str | None
    mode: str
    role: str
    arm: str
    owner: str | None
    started: float
    ended: float

    def to_json(self) -> str:
        """One line: the fields of the result, and those of the record."""
        values = dataclasses.asdict(self)
        return json.dumps(values.pop("result") | values)

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Raises: WorkbenchError for a line that is none."""
        try:
            values = json.loads(text)
            result = TrainResult.from_json(json.dumps({k: v for k, v in values.items() if k in _RESULT}))
            record = cls(result, **{k: v for k, v in values.items() if k not in _RESULT})
            check_identity(result.key, record.mode, record.study)
            if not all(isinstance(row["step"], int) for row in result.history):
                raise WorkbenchError("its history has rows without a step.")
            return dataclasses.replace(record, started=float(record.started), ended=float(record.ended))
        except WorkbenchError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WorkbenchError(f"it is no result ({type(error).__name__}: {error}).") from error


def numbered(folder: Path, name: str, suffix: str) -> list[Path]:
    """NAME.suffix, NAME-2.suffix, ... as far as there are such."""
    pattern = re.compile(re.escape(name) + r"(?:-(\d+))?" + re.escape(suffix))
    by_number = {int(match[1] or 1): file for file in folder.iterdir() if (match := pattern.fullmatch(file.name))}
    return [by_number[number] for number in sorted(by_number)]


def read_records(folder: Path) -> Iterator[tuple[str, Record | WorkbenchError]]:
    """Every line of the results with its place ("results.jsonl, line 3"); a damaged one as the error that says why."""
    for file in numbered(folder, "results", ".jsonl"):
        for at, line in enumerate(file.read_bytes().split(b"\n"), start=1):
            if not line:
                continue
            try:
                yield f"{file.name}, line {at}", Record.from_json(line.decode())
            except (WorkbenchError, UnicodeDecodeError) as error:
                yield f"{file.name}, line {at}", WorkbenchError(str(error))


def tables_of(folder: Path, key: str) -> dict[str, pd.DataFrame]:
    """What a training was asked to measure of itself: {name: table}, as the training gave it; columns that only other
    trainings have are empty. Raises: WorkbenchError for a file that is damaged."""
    tables = {}
    for name in table_names(folder):
        parts = [_rows_of(file, key) for file in numbered(folder, name, ".parquet")]
        table = pd.concat([part.to_pandas() for part in parts], ignore_index=True)
        if len(table):
            tables[name] = table.drop(columns="key")
    return tables


def _rows_of(file: Path, key: str) -> pa.Table:
    try:
        return pq.read_table(file, filters=[("key", "=", key)])
    except (pa.ArrowException, OSError) as error:
        raise WorkbenchError(f"{file.name} cannot be read ({str(error).splitlines()[0]}).") from error


def table_names(folder: Path) -> list[str]:
    """What tables of telemetry there are."""
    stems = {re.sub(r"-\d+$", "", file.stem) for file in folder.glob("[!.]*.parquet")}
    return sorted(stems - {"history"})
