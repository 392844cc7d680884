"""Pool that gives tasks to worker processes and returns their outcomes.

Each worker has its own pipe, so killing one (-9) harms no other. Its task then goes to another worker.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing import connection

from workbench.environment import inherited
from workbench.pool.seats import Seat
from workbench.pool.task import Outcome, Task

GRACE = 15.0  # seconds for stopped tasks to save what they have
POLL = 0.2  # seconds between checks of seats and processes
EXIT = 1.0  # seconds to wait for the exit code of a worker whose pipe broke

Release = Callable[[], None]


def claim_any(index: int) -> Release | None:
    """Claim a seat that no other pool uses."""
    return lambda: None


class Pool:
    """Run one task per seat, in processes that start on first use and stay."""

    def __init__(
        self,
        seats: Sequence[Seat],
        *,
        claim: Callable[[int], Release | None] = claim_any,
        on_blocked: Callable[[], None] = lambda: None,
        on_retry: Callable[[Task, str], None] = lambda task, cause: None,
        inherit: Sequence[int] = (),
    ):
        """Make a pool without starting a process.

        Args:
            seats: One seat for each task that runs at a time.
            claim: Claims a seat by its index before a task starts. It returns a function that releases the seat, or
                None if another pool holds it.
            on_blocked: Called while other pools hold all seats.
            on_retry: Called with each task that runs again, and with the cause.
            inherit: File descriptors that the workers keep open. A lock on one lasts until the last worker ends.
        """
        self.seats, self._claim, self._on_blocked, self._on_retry = seats, claim, on_blocked, on_retry
        self._inherit = inherit
        self._waiting: deque[tuple[Task, int]] = deque()  # tasks, and how many workers died while they ran each
        self._workers: list[_Worker] = []
        self._stopping = False

    @property
    def workers(self) -> int:
        """Number of tasks that can run at a time."""
        return len(self.seats)

    def has_room(self) -> bool:
        """Return whether a task that is submitted now starts at once."""
        return len(self._waiting) + len(self._busy()) < len(self.seats)

    def submit(self, task: Task) -> None:
        """Add a task. Tasks start in the order of submission, as soon as a seat is free."""
        self._waiting.append((task, 0))
        self._start()

    def wait(self, until: Callable[[], bool] = lambda: False) -> Outcome | None:
        """Answer messages until a task ends.

        Args:
            until: Called several times a second. If it returns True, waiting ends.

        Returns:
            The outcome of the task; None if no task is left, or `until` returned True.
        """
        while (self._waiting or self._busy()) and not until():
            self._start()
            busy = self._busy()
            if not busy:
                self._on_blocked()
                time.sleep(POLL)
            ready = connection.wait([worker.pipe for worker in busy], timeout=POLL) if busy else []
            for worker in busy:
                if worker.pipe in ready:
                    outcome = self._hear(worker)
                elif worker.process.poll() is not None and not worker.pipe.poll():  # children may keep the pipe open
                    outcome = self._lost(worker)
                else:
                    continue
                if outcome is not None:
                    return outcome
        return None

    def interrupt(self) -> None:
        """Ask running tasks to save their state and stop. `wait` then returns their outcomes."""
        self._waiting.clear()
        self._stopping = True
        for worker in self._workers:
            worker.process.terminate()

    def stop(self, at_once: bool = False) -> None:
        """End all workers.

        Args:
            at_once: Kill running tasks. Otherwise they first save their state.
        """
        self._waiting.clear()
        if not at_once:
            self.interrupt()
            deadline = time.monotonic() + GRACE
            while self.wait(until=lambda: time.monotonic() > deadline) is not None:
                pass
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        self._stopping = False

    def _busy(self) -> list["_Worker"]:
        return [worker for worker in self._workers if worker.task is not None]

    def _start(self) -> None:
        """Give waiting tasks, in order, to the seats that this pool can claim."""
        taken = {worker.index for worker in self._busy()}
        for index in range(len(self.seats)):
            if not self._waiting:
                return
            if index not in taken and (release := self._claim(index)) is not None:
                self._worker_at(index).give(*self._waiting.popleft(), release)

    def _worker_at(self, index: int) -> "_Worker":
        """Return the idle worker at a seat, or a new one."""
        idle = next((worker for worker in self._workers if worker.index == index), None)
        if idle is not None and idle.process.poll() is None:
            return idle
        if idle is not None:
            self._dismiss(idle)
        worker = _Worker(index, self.seats[index], self._inherit)
        self._workers.append(worker)
        return worker

    def _hear(self, worker: "_Worker") -> Outcome | None:
        """Answer a message of a worker, or return the outcome of its task."""
        try:
            kind, *content = worker.pipe.recv()
        except (EOFError, OSError):
            return self._lost(worker)
        if kind == "message":
            worker.answer(content[0])
            return None
        task = worker.task
        worker.free()
        if kind == "value":
            return Outcome(task, value=content[0])
        self._dismiss(worker)  # an error may leave a GPU unusable, so the next task gets a new process
        return Outcome(task, error=content[0], details=content[1])

    def _lost(self, worker: "_Worker") -> Outcome | None:
        """Run the task of a dead worker again, or return its outcome if it has no retries left."""
        task, deaths = worker.task, worker.deaths + 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(timeout=EXIT)  # for its exit code
        code = worker.process.returncode
        self._dismiss(worker)
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        cause = f"the worker process ended {how}"
        if deaths <= task.retries and not self._stopping:
            self._waiting.appendleft((task, deaths))
            self._on_retry(task, cause)
            return None
        times = "" if deaths == 1 else f", {deaths} times"
        return Outcome(task, error=f"{cause}{times} (out of memory?)", died=True)

    def _dismiss(self, worker: "_Worker") -> None:
        self._workers.remove(worker)
        worker.end()


class _Worker:
    """The pool's side of a worker: its process, pipe, seat and task."""

    def __init__(self, index: int, seat: Seat, inherit: Sequence[int]):
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workbench.pool.worker", str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno(), *inherit],
            env=inherited({"TQDM_DISABLE": "1"} | seat.environment),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches only the parent, and the whole group can be killed
        )
        theirs.close()
        self.pipe = connection.Connection(ours.detach())
        self.index = index
        self.task: Task | None = None
        self.deaths = 0  # workers that died while they ran this task
        self._release: Release | None = None

    def give(self, task: Task, deaths: int, release: Release) -> None:
        self.task, self.deaths, self._release = task, deaths, release
        self._send((task.function, task.arguments, task.environment))

    def answer(self, message: object) -> None:
        """Send the answer of the task's `on_message`.

        The worker waits for an answer, so an exception sends None.
        """
        reply = None
        try:
            reply = self.task.on_message(message)
        finally:
            self._send(reply)

    def free(self) -> None:
        """Release the task and the seat."""
        self.task = None
        if self._release is not None:
            self._release()
            self._release = None

    def end(self) -> None:
        """Kill the process and its children."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS raises the latter for a group of zombies
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.pipe.close()
        self.free()

    def _send(self, message: object) -> None:
        with contextlib.suppress(OSError):  # `wait` notices a dead worker
            self.pipe.send(message)
