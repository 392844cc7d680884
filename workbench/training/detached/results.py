"""The folder of a detached run, and how results are written to it.

results.jsonl             one line per finished training, written at once and forced to disk
tables/KEY/NAME.parquet   the tables of a training; its line has the hashes
checkpoints/KEY/step-*    checkpoints of unfinished trainings
history.parquet           the histories of all lines as one tidy table, written when a run ends
"""

import contextlib
import dataclasses
import errno
import fcntl
import os
import platform
import re
import shutil
import time
from pathlib import Path

import pandas as pd

from workbench import outcomes
from workbench.errors import WorkbenchError
from workbench.files import local_path, sha256, write_whole
from workbench.training.config import config_id
from workbench.training.detached.records import RESULTS, Record, read_records
from workbench.training.detached.tables import table_file

LOCK = "lock"
POLL = 0.2  # seconds between looks at a lock


class Results:
    """The folder of a run, created if needed, and held by one process at a time.

    The workers inherit the lock. So if the process is killed, the lock stays until its workers have saved.

    Args:
        folder: The folder.

    Raises:
        WorkbenchError: If another process holds the folder, or if it cannot be written.
    """

    def __init__(self, folder: str | Path):
        self.folder = local_path(folder).resolve()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / LOCK, "a+")  # noqa: SIM115, held until `close`
        except OSError as error:
            raise WorkbenchError(f"Cannot write to {self.folder} ({error.strerror}). Choose another --out.") from error
        self._hold()
        for part in self.folder.rglob(".[0-9]*-*"):  # unfinished files of a process that was killed
            part.unlink()
        _cut_torn_line(self.folder / RESULTS)
        self.records: dict[str, Record] = {}
        for _, record in read_records(self.folder):
            if isinstance(record, Record):
                self._remember(record)

    def _hold(self) -> None:
        try:
            while not self._locked():
                self._lock.seek(0)
                holder = self._lock.read().strip()
                if not _is_gone(holder):
                    self._lock.close()
                    raise WorkbenchError(
                        f"{self.folder} is in use by {holder or 'another process'}. Wait for it, end it, or choose "
                        "another --out."
                    )
                time.sleep(POLL)  # the workers of the ended process notice, save, and end
        except OSError as error:
            raise WorkbenchError(
                f"{self.folder} cannot be locked ({error.strerror}). Choose an --out on another file system."
            ) from error
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {platform.node()}\n")
        self._lock.flush()

    def _locked(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    @property
    def descriptor(self) -> int:
        """The descriptor of the lock, for the workers."""
        return self._lock.fileno()

    def close(self) -> None:
        """Release the folder."""
        self._lock.close()

    def checkpoints(self, key: str) -> Path:
        """Return the folder of a training's checkpoints."""
        return self.folder / "checkpoints" / key

    def finished(self, key: str) -> bool:
        """Return whether the training has a result. A training that ended with an error has none."""
        return key in self.records and self.records[key].result.outcome in outcomes.RESULTS

    def add(self, record: Record, tables: dict[str, pd.DataFrame]) -> None:
        """Write a training's tables and its line. Then remove its checkpoints, unless it failed."""
        key, hashes = record.result.key, {}
        for name, table in tables.items():
            file = table_file(self.folder, key, name)
            write_whole(file, lambda path, table=table: table.to_parquet(path, index=False))
            hashes[name] = sha256(file)
        record = dataclasses.replace(record, tables=hashes)
        _append_to_disk(self.folder / RESULTS, (record.to_json() + "\n").encode())
        self._remember(record)

    def write_history(self) -> None:
        """Write the tidy table of all histories, one row per evaluation.

        Columns: key, config_id, arm, and those of a history row.
        """
        rows = [
            {"key": record.result.key, "config_id": config_id(record.result.config), "arm": record.arm, **row}
            for record in self.records.values()
            for row in record.result.history
        ]
        write_whole(self.folder / "history.parquet", lambda path: pd.DataFrame(rows).to_parquet(path, index=False))

    def _remember(self, record: Record) -> None:
        key = record.result.key
        if not self.finished(key):
            self.records[key] = record
        if self.finished(key):
            shutil.rmtree(self.checkpoints(key), ignore_errors=True)


def _is_gone(holder: str) -> bool:
    """Return whether the holder was a process of this machine that has ended."""
    match = re.fullmatch(r"process (\d+) on (.*)", holder)
    if match is None or match[2] != platform.node():
        return False
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _cut_torn_line(file: Path) -> None:
    """Remove an incomplete last line, which a process that was killed leaves behind."""
    data = file.read_bytes() if file.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(file, len(whole))


def _append_to_disk(file: Path, line: bytes) -> None:
    """Append a line and force it to disk.

    Raises:
        WorkbenchError: If that fails. The file is then unchanged.
    """
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
        raise WorkbenchError(f"Cannot write {file} ({error.strerror}). Free disk space and start again.") from error
