"""Work in processes of this machine: the pool, whose seats all studies of a store share.

A task starts when the lock of its seat is free. So two studies never run on one GPU.
"""

import platform
from pathlib import Path

import filelock

from workbench.lab.executors import channel
from workbench.lab.executors.base import Resources
from workbench.paths import root
from workbench.pool import Pool, seats, visible_gpus
from workbench.pool.dispatch import Release

WAITS = "waits for a worker: other studies of this store use all of them"


class ProcessExecutor(Pool):
    """Runs tasks in up to `workers` processes; see `Executor`.

    Args:
        workers: Number of processes.
        resources: What one task takes.
    """

    def __init__(self, workers: int, resources: Resources | None = None):
        resources = resources or Resources()
        gpus = [] if resources.gpus == 0 else visible_gpus()
        super().__init__(seats(workers, gpus, resources.threads), claim=lock_seat, on_blocked=self._announce)
        self._announced = False

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            channel.announce(WAITS)


def lock_seat(index: int) -> Release | None:
    """Lock a seat of this machine for this store.

    Args:
        index: Number of the seat.

    Returns:
        What releases the seat. None: another study has it.
    """
    folder = seats_folder()
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / f"{platform.node()}-{index}.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return None
    return lock.release


def seats_folder() -> Path:
    """Return the folder with the seat locks of this store."""
    return root() / "mlruns" / "locks" / "seats"
