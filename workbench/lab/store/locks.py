"""Locks that say for whom they wait, and who holds a file.

A lock file stays when it is free: removing it can break the lock of another process.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import psutil

from workbench.errors import WorkbenchError, disk_error_message
from workbench.lab.executors import channel

SILENT = 2.0  # seconds of waiting without a word
TABLE = Path("/proc/locks")  # Linux lists all locks there


@contextlib.contextmanager
def locked(lock: filelock.BaseFileLock | Path, what: str) -> Iterator[None]:
    """Hold a lock within this context. A wait of more than two seconds is announced, once.

    Args:
        lock: The lock, or its file.
        what: What the lock protects, for the announcement.

    Raises:
        WorkbenchError: If something else has the name of the lock file.
        OSError: If the disk is full or read-only.
    """
    lock = filelock.FileLock(lock) if isinstance(lock, Path) else lock
    try:
        try:
            lock.acquire(timeout=SILENT)
        except filelock.Timeout:
            channel.announce(f"waits for {what}: {holder(Path(lock.lock_file))} holds {lock.lock_file}")
            lock.acquire()
    except OSError as error:
        if disk_error_message(error):
            raise
        raise WorkbenchError(
            f"cannot lock {lock.lock_file} ({error.strerror}). Move it away, it holds nothing."
        ) from error
    try:
        yield
    finally:
        lock.release()


def holder(*files: Path) -> str:
    """Name the other process that has locked one of these files: its id, its command, and when it started."""
    with contextlib.suppress(OSError, ValueError, IndexError, psutil.Error):
        inodes = {str(file.stat().st_ino) for file in files if file.exists()}
        for line in TABLE.read_text().splitlines():
            _, kind, *_, pid, place, _, _ = line.split()
            if kind != "->" and "WRITE" in line and place.rpartition(":")[2] in inodes and int(pid) != os.getpid():
                process = psutil.Process(int(pid))
                started = time.strftime("%d %b %H:%M:%S", time.localtime(process.create_time()))
                return f"process {pid} ({' '.join(' '.join(process.cmdline()).split())[:100]}, since {started})"
    return "another process"
