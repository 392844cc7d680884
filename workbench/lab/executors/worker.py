"""A worker process: takes tasks from a pipe, one after the other, until the pipe closes or its parent is gone.

python -m workbench.lab.executors.worker DESCRIPTOR PARENT
"""

import contextlib
import os
import signal
import sys
import threading
import traceback
from multiprocessing import connection

from workbench.lab.executors.base import in_words, resolve, set_environment
from workbench.lab.executors.lifetime import die_with

SAVING = 15.0  # seconds for a task to save what it has


class Worker:
    """One end of a pipe: runs what comes through it, and answers each task with its value or its error."""

    def __init__(self, descriptor: int):
        self.pipe = connection.Connection(descriptor)
        self._stopped, self._idle = threading.Event(), threading.Event()
        self._idle.set()

    def stop(self, *_) -> None:
        """Has the task under way save what it has, and then ends; ends now where there is none."""
        self._stopped.set()
        if self._idle.is_set():
            os._exit(0)

    def abandoned(self) -> None:
        """Stops, and waits for the task under way to save what it has: whoever submitted it is gone."""
        self.stop()
        self._idle.wait()

    def serve(self) -> None:
        """Until the pipe closes, or this is stopped."""
        while not self._stopped.is_set():
            try:
                function, arguments, environment = self.pipe.recv()
            except EOFError:
                return
            self._idle.clear()
            try:
                self.pipe.send(self._run(function, arguments, environment))
            finally:
                self._idle.set()

    def _run(self, function: str, arguments: object, environment: dict[str, str]) -> tuple:
        with set_environment(environment):
            try:
                return "value", resolve(function)(arguments, self._send, self._stopped.is_set)
            except KeyboardInterrupt:
                return "error", "stopped", ""
            except Exception as error:
                return "error", in_words(error), traceback.format_exc()

    def _send(self, message: object) -> object:
        try:
            self.pipe.send(("message", message))
            return self.pipe.recv()
        except (EOFError, OSError):  # whoever submitted is gone: save what there is
            self._stopped.set()
            return None


def main(descriptor: str, parent: str) -> int:
    worker = Worker(int(descriptor))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, worker.stop)
    die_with(parent, first=worker.abandoned, grace=SAVING)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # whoever waited is gone
        worker.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
