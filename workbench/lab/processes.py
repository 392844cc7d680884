"""Who runs what: the identity of a process that outlives a reused pid, and the end of a whole family of processes."""

import contextlib
import os
import platform
import signal
import threading
import time
from pathlib import Path

import filelock
import psutil


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


def strays(variable: str, place: dict[str, str]) -> dict[int, str]:
    """{pid: command line} of processes whose launcher, named last in the environment's `variable`, is gone, and in
    whose environment the names of `place` have these values. Never this process or one that it descends from."""
    own = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            launcher = environment.get(variable, "").rpartition("|")[2]
            here = all(environment.get(name) == value for name, value in place.items())
            if launcher and here and process.pid not in own and not is_alive(launcher):
                found[process.pid] = " ".join(process.cmdline())
    return found


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
        """Ends them all: politely, then after `grace` seconds for certain."""
        self.look()
        remaining = list(self._members)
        for sig in (signal.SIGTERM, signal.SIGKILL):
            for process in remaining:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(sig)
            _, remaining = psutil.wait_procs(remaining, timeout=grace)
            if not remaining:
                return


def die_with(identity: str, interval: float = 1.0) -> None:
    """Starts a thread that ends this process, without ceremony, once the process `identity` is gone."""

    def watch() -> None:
        while is_alive(identity):
            time.sleep(interval)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch the launcher").start()
