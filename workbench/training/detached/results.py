"""The folder of a detached run: `results.jsonl`, one line a finished training, and tables that follow from it.

A line is written at once and forced to disk. What stands in it is finished; everything else may be made again:
`history.parquet`, the histories of all lines as one tidy table, and one table more for each kind of telemetry. No file
passes 16 MiB: they go on in results-2.jsonl, history-2.parquet and so on.
"""

import contextlib
import errno
import fcntl
import os
import platform
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import WorkbenchError
from workbench.files import write_whole
from workbench.training.config import config_id
from workbench.training.detached.archive import LIMIT
from workbench.training.detached.records import FINISHED, Record, numbered, read_records, table_names


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
        self._history_is_behind = True
        for _, record in read_records(self.folder):
            if isinstance(record, Record):
                self._remember(record)
        self._drop_unfinished_tables()

    def _hold(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock.close()
            raise WorkbenchError(
                f"{self.folder} is in use by {holder}: wait for it, end it, or choose another --out."
            ) from error
        except OSError as error:
            raise WorkbenchError(
                f"{self.folder} cannot be locked ({error.strerror}): choose an --out on another file system."
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
            self._history_is_behind = True

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
        """The tidy table of all histories: key, config_id, arm, then a row's columns; one row an evaluation. Made
        again where there is something new."""
        if not self._history_is_behind:
            return
        rows = [
            {"key": record.result.key, "config_id": config_id(record.result.config), "arm": record.arm, **row}
            for record in self.records.values()
            for row in record.result.history
        ]
        parts = _as_parquet(pd.DataFrame(rows), self.limit) if rows else []
        self._write_parts("history", parts, start=1)
        for file in numbered(self.folder, "history", ".parquet")[len(parts) :]:
            file.unlink()
        self._history_is_behind = False

    def _add_to_table(self, name: str, table: pd.DataFrame) -> None:
        files = numbered(self.folder, name, ".parquet")
        if files:
            joined = _as_parquet(pd.concat([pq.read_table(files[-1]).to_pandas(), table]), self.limit)
            if len(joined) == 1:
                return self._write_parts(name, joined, start=len(files))
        self._write_parts(name, _as_parquet(table, self.limit), start=1 + len(files))

    def _drop_unfinished_tables(self) -> None:
        """Rows of a training that was killed between its tables and its line; it will measure them again."""
        for name in table_names(self.folder):
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
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(stream.fileno())
        if is_new:
            folder = os.open(file.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(file, size)
        raise WorkbenchError(f"cannot write {file} ({error.strerror}): make room and start again.") from error
