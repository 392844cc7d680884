"""The identity and the end of processes.

A reused pid has another identity. A process ends together with all its descendants. A process that writes to the store
holds a lock, which says more than its pid: see `presence`.
"""

import contextlib
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import filelock
import psutil

from workbench.lab.executors import presence
from workbench.lab.executors.context import context_of


def whoami(pid: int | None = None) -> str:
    """Return `host/boot/pid/start` of a process: equal only for the same process.

    Args:
        pid: Process id. None: this process.
    """
    process = psutil.Process(pid)
    return f"{platform.node()}/{int(psutil.boot_time())}/{process.pid}/{process.create_time():.0f}"


def announced() -> str:
    """Return the identity of this process, and hold its lock until the process ends."""
    identity = _own_identity(os.getpid())
    presence.announce(identity)
    return identity


@cache
def _own_identity(pid: int) -> str:
    """Return the identity of this process, the same text at every call. A corrected clock would change it."""
    return whoami(pid)


def is_alive(identity: str, *, shared: bool = False) -> bool:
    """Say whether the process with this identity still runs.

    The lock of the process decides, if it has one. Otherwise, a process of another machine counts as alive, because
    this machine cannot see it. A zombie and an unreadable identity count as dead.

    Args:
        identity: What `whoami` or `announced` returned for the process.
        shared: Whether every process in question has its lock in the folder of this root. A process of another machine
            or container without a lock then counts as dead.
    """
    present = presence.is_present(identity)
    if present is not None:
        return present
    try:
        host, boot, pid, start = identity.rsplit("/", 3)
    except ValueError:
        return False
    if host != platform.node():
        return not shared
    try:
        process = psutil.Process(int(pid))
        same = abs(process.create_time() - float(start)) <= 2 and abs(psutil.boot_time() - int(boot)) <= 60
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_held(lock: Path) -> bool:
    """Say whether a living process holds this lock file."""
    if not lock.exists():
        return False
    try:
        with filelock.FileLock(lock, timeout=0):
            return False
    except filelock.Timeout:
        return True


def strays(worker: str, place: Path) -> dict[int, str]:
    """Find the processes that work for `place` although their launcher is gone.

    The context in a process's environment names its launcher. This process and its ancestors never count.

    Args:
        worker: A module whose last command-line argument is the process id of its parent.
        place: The root that the processes work for.

    Returns:
        Command lines by process id.
    """
    ancestry = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    command_lines = {}
    for process in psutil.process_iter():
        with contextlib.suppress(
            psutil.Error, OSError, ValueError, TypeError
        ):  # the process ended, or belongs to another user or program
            environment, command = process.environ(), process.cmdline()
            context = context_of(environment)
            if worker in command:
                stray = process.ppid() != int(command[-1])
            else:
                stray = context is not None and not is_alive(context.launcher)
            if not stray or process.pid in ancestry:
                continue
            named, works_in = environment.get("WORKBENCH_ROOT"), Path(process.cwd())
            works_for_place = Path(named) == place if named else place in (works_in, *works_in.parents)
            if works_for_place:
                command_lines[process.pid] = " ".join(command)
    return command_lines


class Family:
    """A process and its descendants, also those whose parent died after a look.

    Args:
        pid: Process id of the head.
    """

    def __init__(self, pid: int):
        self._head = psutil.Process(pid)
        self._members = {self._head}

    def look(self) -> None:
        """Remember the descendants of this moment."""
        for member in list(self._members):
            with contextlib.suppress(psutil.NoSuchProcess):
                self._members.update(member.children(recursive=True))

    def end(self, grace: float = 5.0) -> None:
        """End all members: first the descendants, then the head.

        The head gets the time to end by itself after its descendants. An interruption of this call kills all members
        at once.

        Args:
            grace: Seconds to wait after each SIGTERM, before SIGKILL.
        """
        self.look()
        try:
            if grace > 0:
                others = [p for p in self._members - {self._head} if p.is_running()]
                _signal(others, signal.SIGTERM)
                remaining = _wait(self._members, grace) if others else self._members
                _signal(remaining, signal.SIGTERM)
                _wait(remaining, grace)
        finally:
            self.look()
            _signal(self._members, signal.SIGKILL)
            _wait(self._members, 5.0)


def _signal(processes: Iterable[psutil.Process], sig: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(sig)


def _wait(processes: Iterable[psutil.Process], timeout: float) -> list[psutil.Process]:
    return psutil.wait_procs(list(processes), timeout=timeout)[1]


def die_with(
    identity: str, interval: float = 1.0, first: Callable[[], None] = lambda: None, grace: float = 5.0
) -> None:
    """Start a thread that exits this process, without cleanup, once another process is gone.

    Args:
        identity: The other process, as `whoami` names it.
        interval: Seconds between two looks.
        first: Called before the exit.
        grace: Seconds that `first` gets.
    """

    def watch() -> None:
        while is_alive(identity):
            time.sleep(interval)
        done = threading.Thread(target=first, daemon=True)
        done.start()
        done.join(grace)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch the launcher").start()
