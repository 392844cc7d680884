"""Work in this very process, one task after the other: nothing to start, and the debugger sees all of it."""

import contextlib
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator

from workbench.pool import Outcome, Task
from workbench.pool.task import in_words, resolve, set_environment


class InlineExecutor:
    """One task at a time, in `wait`. A worker that dies is this process: nobody is left to try again."""

    workers = 1

    def __init__(self):
        self._waiting: deque[Task] = deque()

    def has_room(self) -> bool:
        return not self._waiting

    def submit(self, task: Task) -> None:
        self._waiting.append(task)

    def wait(self) -> Outcome | None:
        if not self._waiting:
            return None
        task = self._waiting.popleft()
        stop = threading.Event()
        with _terminated_is_stopped(stop), set_environment(task.environment):
            try:
                return Outcome(task, value=resolve(task.function)(task.arguments, task.on_message, stop.is_set))
            except Exception as error:
                return Outcome(task, error=in_words(error), details=traceback.format_exc())

    def stop(self, at_once: bool = False) -> None:
        self._waiting.clear()


@contextlib.contextmanager
def _terminated_is_stopped(stop: threading.Event) -> Iterator[None]:
    """Within it, SIGTERM asks the task to save what it has and stop; then who would have had the signal gets it."""
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
