"""Who runs what: the identity of a process that outlives a reused pid, and the end of a whole family of processes."""

import contextlib
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import filelock
import psutil

from workbench.lab.executors.context import context_of


def whoami(pid: int | None = None) -> str:
    """host/boot/pid/start of a process: equal only for the same process."""
    process = psutil.Process(pid)
    return f"{platform.node()}/{int(psutil.boot_time())}/{process.pid}/{process.create_time():.0f}"


def is_alive(identity: str) -> bool:
    """Whether the process that `whoami` named still runs. One of another machine counts as alive: it cannot be seen
    from here."""
    try:
        host, boot, pid, start = identity.rsplit("/", 3)
    except ValueError:
        return False
    if host != platform.node():
        return True
    try:
        process = psutil.Process(int(pid))
        same = abs(process.create_time() - float(start)) <= 2 and abs(psutil.boot_time() - int(boot)) <= 60
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_held(lock: Path) -> bool:
    """Whether a living process holds this lock: one that died holds none."""
    if not lock.exists():
        return False
    try:
        with filelock.FileLock(lock, timeout=0):
            return False
    except filelock.Timeout:
        return True


def strays(worker: str, place: Path) -> dict[int, str]:
    """Find the processes that work for `place` though their launcher is gone; never this process or its ancestors.

    The launcher is named in the context of a process's environment.

    Args:
        worker: A module whose last argument is the process id of its parent.
        place: The root that they work for.

    Returns:
        {pid: command line}.
    """
    ancestry = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    command_lines = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError, ValueError, TypeError):  # a context of somebody else's
            environment, command = process.environ(), process.cmdline()
            context = context_of(environment)
            if worker in command:
                lost = process.ppid() != int(command[-1])
            else:
                lost = context is not None and not is_alive(context.launcher)
            if not lost or process.pid in ancestry:
                continue
            named, works_in = environment.get("WORKBENCH_ROOT"), Path(process.cwd())
            here = Path(named) == place if named else place in (works_in, *works_in.parents)
            if here:
                command_lines[process.pid] = " ".join(command)
    return command_lines


class Family:
    """A process and whoever descends from it, remembered, so that nobody is lost when one in the middle dies."""

    def __init__(self, pid: int):
        self._head = psutil.Process(pid)
        self._members = {self._head}

    def look(self) -> None:
        """Takes note of the descendants of now."""
        for member in list(self._members):
            with contextlib.suppress(psutil.NoSuchProcess):
                self._members.update(member.children(recursive=True))

    def end(self, grace: float = 5.0) -> None:
        """Ends them all: first whoever descends from the head, which may then come to its own end, then the head, and
        after `grace` seconds each for certain. An interruption meanwhile ends them at once."""
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
    """Starts a thread that ends this process, without ceremony, once the process `identity` is gone; `first` is called
    before, and given `grace` seconds to have its effect."""

    def watch() -> None:
        while is_alive(identity):
            time.sleep(interval)
        done = threading.Thread(target=first, daemon=True)
        done.start()
        done.join(grace)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch the launcher").start()
