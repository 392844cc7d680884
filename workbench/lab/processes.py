"""Who runs what: the identity of a process that outlives a reused pid, and the end of a whole family of processes."""

import contextlib
import os
import platform
import signal
import threading
import time

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
