"""The folder of a detached run, and how a result gets into it.

results.jsonl             one line a finished training, written at once and forced to disk
tables/KEY/NAME.parquet   what a training measured of itself; its line has the hashes
checkpoints/KEY/step-*    of the trainings under way
history.parquet           the histories of all lines as one tidy table, made when a run ends
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

from workbench.errors import WorkbenchError
from workbench.files import sha256, write_whole
from workbench.training.config import config_id
from workbench.training.detached.records import FINISHED, RESULTS, Record, read_records, table_file

LOCK = "lock"
POLL = 0.2  # seconds between looks at a lock


class Results:
    """The folder, made where it does not exist, and held by one process at a time.

    The lock is inherited by the workers. So it outlasts a process that was killed until its workers have saved.

    Raises:
        WorkbenchError: Where another process holds it, and where it cannot be written.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser().resolve()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / LOCK, "a+")  # noqa: SIM115, held until `close`
        except OSError as error:
            raise WorkbenchError(f"cannot write to {self.folder} ({error.strerror}): choose another --out.") from error
        self._hold()
        for part in self.folder.rglob(".[0-9]*-*"):  # what a process that was killed had not finished writing
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
                time.sleep(POLL)  # its workers notice, save, and end
        except OSError as error:
            raise WorkbenchError(
                f"{self.folder} cannot be locked ({error.strerror}): choose an --out on another file system."
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
        """Let go of the folder."""
        self._lock.close()

    def checkpoints(self, key: str) -> Path:
        """Return the folder of a training's checkpoints."""
        return self.folder / "checkpoints" / key

    def finished(self, key: str) -> bool:
        """Whether the training is done. One that failed is not."""
        return key in self.records and self.records[key].result.outcome in FINISHED

    def add(self, record: Record, tables: dict[str, pd.DataFrame]) -> None:
        """Keep a training's tables, then its line; then remove its checkpoints, unless it failed."""
        key, hashes = record.result.key, {}
        for name, table in tables.items():
            file = table_file(self.folder, key, name)
            write_whole(file, lambda path, table=table: table.to_parquet(path, index=False))
            hashes[name] = sha256(file)
        record = dataclasses.replace(record, tables=hashes)
        _append_to_disk(self.folder / RESULTS, (record.to_json() + "\n").encode())
        self._remember(record)

    def write_history(self) -> None:
        """Write the tidy table of all histories: key, config_id, arm, then a row's columns; one row an evaluation."""
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
    """Whether the holder, as `_hold` wrote it, was a process of this machine that has ended."""
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
    """Take away what a process that was killed had written of its last line."""
    data = file.read_bytes() if file.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(file, len(whole))


def _append_to_disk(file: Path, line: bytes) -> None:
    """Append a line and force it to disk.

    Raises:
        WorkbenchError: Where that fails. The file is then as it was.
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
        raise WorkbenchError(f"cannot write {file} ({error.strerror}): make room and start again.") from error
