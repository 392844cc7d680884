"""Worker process: runs tasks from a pipe until the pipe closes or the parent ends.

    python -m workbench.pool.worker DESCRIPTOR PARENT

The pool starts each worker in a new session. So Ctrl-C reaches only the parent, and the worker's process group holds
the worker and its children.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from multiprocessing import connection

from workbench.pool.task import run_task

SAVING = 15.0  # seconds for a task to save its state after the parent ended
WATCH = 0.5  # seconds between checks of the parent


class Worker:
    """The worker's end of the pipe. It answers each task with its value or its error.

    Args:
        descriptor: File descriptor of the pipe.
    """

    def __init__(self, descriptor: int):
        self.pipe = connection.Connection(descriptor)
        self._stopped, self._idle = threading.Event(), threading.Event()
        self._idle.set()

    def stop(self, *_) -> None:
        """Ask the running task to save its state, then end. End at once if no task runs."""
        self._stopped.set()
        if self._idle.is_set():
            end_group()

    def serve(self) -> None:
        """Run tasks until the pipe closes or `stop` is called."""
        while not self._stopped.is_set():
            try:
                task = self.pipe.recv()
            except EOFError:
                return
            self._idle.clear()
            try:
                self.pipe.send(run_task(*task, self._send, self._stopped.is_set))
            finally:
                self._idle.set()

    def end_with(self, parent: int) -> None:
        """Wait until the parent ends, let the running task save its state, then end."""
        while os.getppid() == parent:
            time.sleep(WATCH)
        self._stopped.set()
        self._idle.wait(SAVING)
        end_group()

    def _send(self, message: object) -> object:
        try:
            self.pipe.send(("message", message))
            return self.pipe.recv()
        except (EOFError, OSError):  # the parent ended: the task must save its state
            self._stopped.set()
            return None


def end_group() -> None:
    """Kill this process and its children."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main(descriptor: str, parent: str) -> None:
    """Serve a pipe.

    Args:
        descriptor: File descriptor of the pipe.
        parent: Process id of the parent.
    """
    worker = Worker(int(descriptor))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, worker.stop)
    threading.Thread(target=worker.end_with, args=[int(parent)], daemon=True, name="watch the parent").start()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent ended
        worker.serve()
    end_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
