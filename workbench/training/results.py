"""The folder of a detached run: `results.jsonl`, one line a finished training, and tables that follow from it.

A line is written at once and forced to disk. What stands in it is finished; everything else may be made again:
`history.parquet`, the histories of all lines as one tidy table, and one table more for each kind of telemetry. No file
passes 16 MiB: they go on in results-2.jsonl, history-2.parquet and so on.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import WorkbenchError
from workbench.models.weights.files import write_whole
from workbench.training.archive import LIMIT
from workbench.training.config import TrainResult, config_id
from workbench.training.plan import check_identity

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
    found = {int(match[1] or 1): file for file in folder.iterdir() if (match := pattern.fullmatch(file.name))}
    return [found[number] for number in sorted(found)]


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
    trainings have are empty."""
    found = {}
    for name in _table_names(folder):
        parts = [pq.read_table(file, filters=[("key", "=", key)]) for file in numbered(folder, name, ".parquet")]
        table = pd.concat([part.to_pandas() for part in parts], ignore_index=True)
        if len(table):
            found[name] = table.drop(columns="key")
    return found


def _table_names(folder: Path) -> list[str]:
    stems = {re.sub(r"-\d+$", "", file.stem) for file in folder.glob("[!.]*.parquet")}
    return sorted(stems - {"history"})


class Results:
    """The folder, made where there is none, and held by one process at a time.

    Raises: WorkbenchError where another process holds it, and where it cannot be written.
    """

    def __init__(self, folder: str | Path, limit: int = LIMIT):
        self.folder, self.limit = Path(folder).expanduser().resolve(), limit
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / "lock", "a+")  # noqa: SIM115, held until `close`
        except OSError as error:
            raise WorkbenchError(f"cannot write to {self.folder} ({error.strerror}): choose another --out.") from error
        self._hold()
        for part in self.folder.glob(".[0-9]*-*"):  # what a process that was killed had not finished writing
            part.unlink()
        for file in numbered(self.folder, "results", ".jsonl")[-1:]:
            _cut_torn_line(file)
        self.records: dict[str, Record] = {}
        for _, record in read_records(self.folder):
            if isinstance(record, Record):
                self._remember(record)
        self._drop_unfinished_tables()

    def _hold(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock.close()
            raise WorkbenchError(
                f"{self.folder} is in use by {holder}: wait for it, end it, or choose another --out."
            ) from error
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {platform.node()}\n")
        self._lock.flush()

    def close(self) -> None:
        """Lets go of the folder."""
        self._lock.close()

    def _remember(self, record: Record) -> None:
        known = self.records.get(record.result.key)
        if known is None or known.result.outcome not in FINISHED:
            self.records[record.result.key] = record

    def finished(self, key: str) -> bool:
        """Whether the training is done; one that failed is not."""
        return key in self.records and self.records[key].result.outcome in FINISHED

    def add(self, record: Record, tables: dict[str, pd.DataFrame]) -> None:
        """Keeps a training's tables, then its line: where the line is, the tables are."""
        for name, table in tables.items():
            self._add_to_table(name, table.assign(key=record.result.key))
        line = (record.to_json() + "\n").encode()
        file = (numbered(self.folder, "results", ".jsonl") or [self.folder / "results.jsonl"])[-1]
        if file.exists() and file.stat().st_size and file.stat().st_size + len(line) > self.limit:
            file = self._part("results", ".jsonl", 1 + len(numbered(self.folder, "results", ".jsonl")))
        _append_to_disk(file, line)
        self._remember(record)

    def write_history(self) -> None:
        """The tidy table of all histories: key, config_id, arm, then a row's columns; one row an evaluation."""
        rows = [
            {"key": record.result.key, "config_id": config_id(record.result.config), "arm": record.arm, **row}
            for record in self.records.values()
            for row in record.result.history
        ]
        parts = _as_parquet(pd.DataFrame(rows), self.limit) if rows else []
        self._write_parts("history", parts, start=1)
        for file in numbered(self.folder, "history", ".parquet")[len(parts) :]:
            file.unlink()

    def _add_to_table(self, name: str, table: pd.DataFrame) -> None:
        files = numbered(self.folder, name, ".parquet")
        if files:
            joined = _as_parquet(pd.concat([pq.read_table(files[-1]).to_pandas(), table]), self.limit)
            if len(joined) == 1:
                return self._write_parts(name, joined, start=len(files))
        self._write_parts(name, _as_parquet(table, self.limit), start=1 + len(files))

    def _drop_unfinished_tables(self) -> None:
        """Rows of a training that was killed between its tables and its line; it will measure them again."""
        for name in _table_names(self.folder):
            for file in numbered(self.folder, name, ".parquet"):
                table = pq.read_table(file).to_pandas()
                kept = table[[self.finished(key) for key in table["key"]]]
                if len(kept) < len(table):
                    write_whole(file, lambda path, kept=kept: path.write_bytes(_parquet_bytes(kept)))

    def _write_parts(self, name: str, parts: list[bytes], start: int) -> None:
        for number, data in enumerate(parts, start=start):
            write_whole(self._part(name, ".parquet", number), lambda path, data=data: path.write_bytes(data))

    def _part(self, name: str, suffix: str, number: int) -> Path:
        return self.folder / (f"{name}{suffix}" if number == 1 else f"{name}-{number}{suffix}")


def _as_parquet(table: pd.DataFrame, limit: int) -> list[bytes]:
    """The table as one file, or where that would pass `limit` bytes as several, in order."""
    data = _parquet_bytes(table)
    if len(data) <= limit or len(table) == 1:
        return [data]
    half = len(table) // 2
    return _as_parquet(table[:half], limit) + _as_parquet(table[half:], limit)


def _parquet_bytes(table: pd.DataFrame) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), sink)
    return sink.getvalue().to_pybytes()


def _cut_torn_line(file: Path) -> None:
    """Takes away what a process that was killed had written of its last line."""
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(file, len(whole))


def _append_to_disk(file: Path, line: bytes) -> None:
    """Raises: WorkbenchError where it cannot; the file is then as it was."""
    is_new = not file.exists()
    size = 0 if is_new else file.stat().st_size
    try:
        with open(file, "ab", buffering=0) as stream:
            written = stream.write(line)
            if written < len(line):
                raise OSError(28, "No space left on device")
            os.fsync(stream.fileno())
        if is_new:
            folder = os.open(file.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(file, size)
        raise WorkbenchError(f"cannot write {file} ({error.strerror}): make room and start again.") from error
