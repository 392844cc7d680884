"""One lock file per process that writes to the store, held as long as the process lives.

The system frees the lock when the process ends, however it ends: also after a kill, a reboot, or the end of its
container. All containers and machines that share the folder see the lock. A process id and a host name show a process
only to its own container.
"""

import atexit
import contextlib
import fcntl
import hashlib
import os
import sys
import time
from pathlib import Path

from workbench.paths import root

PATIENCE = 2.0  # seconds; another process may look at the lock at the same moment

_held: dict[Path, int] = {}  # file descriptors by lock file, of this process


def folder() -> Path:
    """Return the folder of the lock files."""
    return root() / "mlruns" / "locks" / "processes"


def announce(identity: str) -> None:
    """Hold the lock of this process until it ends. Where files cannot be locked, nothing happens.

    Args:
        identity: The process, as `lifetime.whoami` names it.
    """
    file = _file(identity)
    if file in _held:
        return
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        _remove_free_locks(file.parent)
        _held[file] = _locked(file)
        os.write(_held[file], f"{identity}\n{' '.join(sys.argv)}\nsince {time.ctime()}\n".encode())


def is_present(identity: str) -> bool | None:
    """Say whether a process holds its lock. None: it has none here.

    Args:
        identity: The process, as `lifetime.whoami` names it.
    """
    try:
        descriptor = os.open(_file(identity), os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not see each other
    except BlockingIOError:
        return True
    except OSError:  # this file system has no locks
        return None
    finally:
        os.close(descriptor)
    return False


def _file(identity: str) -> Path:
    return folder() / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.lock"


def _locked(file: Path) -> int:
    """Return the descriptor of the locked file.

    Raises:
        OSError: If it cannot be locked.
    """
    end = time.monotonic() + PATIENCE
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor
        except (BlockingIOError, FileNotFoundError):  # another process looks at the file, or has removed it
            if time.monotonic() > end:
                os.close(descriptor)
                raise
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(0.02)


def _remove_free_locks(place: Path) -> None:
    """Remove the files of processes that have ended."""
    for file in place.glob("*.lock"):
        with contextlib.suppress(OSError):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink()
            finally:
                os.close(descriptor)


@atexit.register
def _leave() -> None:
    for file in _held:
        with contextlib.suppress(OSError):
            file.unlink()


def _forget() -> None:
    """Close the locks of the parent process in a fork. They stay locked, because the parent has them open."""
    for descriptor in _held.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
