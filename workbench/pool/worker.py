"""A worker process: runs tasks from a pipe, one after the other, until the pipe closes or its parent is gone.

python -m workbench.pool.worker DESCRIPTOR PARENT

The pool starts it in a session of its own. So Ctrl-C reaches only the parent, and the worker's process group holds the
worker and whatever it started.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from multiprocessing import connection

from workbench.pool.task import run_task

SAVING = 15.0  # seconds for a task to save what it has when the parent is gone
WATCH = 0.5  # seconds between looks at the parent


class Worker:
    """The worker's end of the pipe: answers each task with its value or its error."""

    def __init__(self, descriptor: int):
        self.pipe = connection.Connection(descriptor)
        self._stopped, self._idle = threading.Event(), threading.Event()
        self._idle.set()

    def stop(self, *_) -> None:
        """Have the task under way save what it has, and end after it; end now where no task runs."""
        self._stopped.set()
        if self._idle.is_set():
            end_group()

    def serve(self) -> None:
        """Run tasks until the pipe closes, or `stop`."""
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
        """Wait until the parent is gone, let the task under way save, then end."""
        while os.getppid() == parent:
            time.sleep(WATCH)
        self._stopped.set()
        self._idle.wait(SAVING)
        end_group()

    def _send(self, message: object) -> object:
        try:
            self.pipe.send(("message", message))
            return self.pipe.recv()
        except (EOFError, OSError):  # the parent is gone: save what there is
            self._stopped.set()
            return None


def end_group() -> None:
    """End this process and whatever it started."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main(descriptor: str, parent: str) -> None:
    """Serve the pipe with this descriptor, for the process with this id."""
    worker = Worker(int(descriptor))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, worker.stop)
    threading.Thread(target=worker.end_with, args=[int(parent)], daemon=True, name="watch the parent").start()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent is gone
        worker.serve()
    end_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
