"""Work in this process, one task after the other. A debugger sees all of it."""

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Iterator

from workbench.environment import changed
from workbench.pool import Outcome, Task
from workbench.pool.task import STOPPED, failure, resolve


class InlineExecutor:
    """Runs one task at a time, inside `wait`; see `Executor`.

    Tasks are not retried, because the worker is this process.
    """

    workers = 1

    def __init__(self):
        self._waiting: deque[Task] = deque()

    def has_room(self) -> bool:
        """Say whether no task waits."""
        return not self._waiting

    def submit(self, task: Task) -> None:
        """Take a task, which the next `wait` runs."""
        self._waiting.append(task)

    def wait(self) -> Outcome | None:
        """Run the next task and return its outcome. None: no task waits."""
        if not self._waiting:
            return None
        task = self._waiting.popleft()
        stop = threading.Event()
        with _sigterm_stops(stop), changed(task.environment):
            try:
                return Outcome(task, value=resolve(task.function)(task.arguments, task.on_message, stop.is_set))
            except BaseException as error:  # also the SystemExit of a user's network, and panics of extensions in Rust
                message, details = failure(error)
                if message == STOPPED:
                    raise
                return Outcome(task, error=message, details=details)

    def stop(self, at_once: bool = False) -> None:
        """Drop the waiting tasks."""
        self._waiting.clear()


@contextlib.contextmanager
def _sigterm_stops(stop: threading.Event) -> Iterator[None]:
    """Let SIGTERM set `stop` within this context.

    At its end the handler that was set before receives the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if stop.is_set() and callable(before):
            before(signal.SIGTERM, None)
