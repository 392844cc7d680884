"""The file system under the store, because SQLite's write-ahead log needs a local one.

The log works with shared memory, which two machines do not share: over a network it can destroy the database.
"""

import contextlib
import re
import sqlite3
from pathlib import Path

import psutil

from workbench.lab.executors import channel

NETWORK = re.compile(
    r"(fuse\.)?(nfs4?|cifs|smb[23]?|smbfs|lustre|beegfs|fhgfs|gpfs|ceph|glusterfs|afs|9p|virtiofs|orangefs|pvfs2|panfs"
    r"|davfs2?|webdav|s3fs|sshfs)",
    re.IGNORECASE,
)


def network_type(file: Path) -> str | None:
    """Return the type of the network file system that holds a file, such as "nfs4". None: it is local."""
    place = file.resolve()
    mounts = [m for m in psutil.disk_partitions(all=True) if place.is_relative_to(m.mountpoint)]
    if not mounts:
        return None
    mounts.reverse()  # of several mounts at one place the last is in use, and `max` takes the first
    kind = max(mounts, key=lambda mount: len(mount.mountpoint)).fstype
    return kind if NETWORK.fullmatch(kind) else None


def set_journal(file: Path, *, is_new: bool) -> None:
    """Let readers go on during writes, by the write-ahead log, unless the file is on a network file system.

    The user reads about it once: when the database is new, or when its log is switched off.
    """
    network = network_type(file)
    before = ""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(file, timeout=60)) as database:
        (before,) = database.execute("pragma journal_mode").fetchone()
        database.execute(f"pragma journal_mode = {'delete' if network else 'wal'}")
    if network and (is_new or before == "wal"):
        channel.announce(
            f"{file} is on a network file system ({network}), so SQLite works without its write-ahead log. Let one "
            "machine at a time write to it, or set MLFLOW_TRACKING_URI to a server."
        )
