"""Work in processes of this machine, each with its threads and, where there are GPUs, with its own.

A worker talks through a pipe of its own, so that killing one (-9) harms no other: its task goes to another. The workers
of all studies of a store share the machine's places: a task starts when it gets the lock of one.
"""

import contextlib
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from multiprocessing import connection
from pathlib import Path

import filelock

from workbench.errors import WorkbenchError
from workbench.lab.executors import channel
from workbench.lab.executors.base import Outcome, Resources, Task
from workbench.lab.executors.lifetime import Family, whoami
from workbench.machine import cores
from workbench.paths import root

GRACE = 15.0  # seconds for a task to save what it has
POLL = 0.2
WAITS = "waits for a worker: other studies of this store have all of them"


class _Worker:
    """A process, the place it works at, and the task that it has."""

    def __init__(self, place: int, environment: dict[str, str], coordinator: bool):
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "workbench.lab.executors.worker", str(theirs.fileno()), whoami()]
        self.process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for who submitted
        )
        theirs.close()
        self.pipe = connection.Connection(ours.detach())
        self.place, self.coordinator = place, coordinator
        self.family = Family(self.process.pid)
        self.task: Task | None = None
        self.lock: filelock.FileLock | None = None

    def give(self, task: Task, lock: filelock.FileLock | None) -> None:
        self.task, self.lock = task, lock
        with contextlib.suppress(OSError):  # one that died meanwhile is found by `wait`
            self.pipe.send((task.function, task.arguments, task.environment))

    def answer(self, message: object) -> None:
        """Has the task's `on_message` answer; also when that is interrupted, the worker does not wait for ever."""
        reply = None
        try:
            reply = self.task.on_message(message)
        finally:
            with contextlib.suppress(OSError):  # one that died meanwhile is found by `wait`
                self.pipe.send(reply)

    def free(self) -> None:
        self.task = None
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def end(self, grace: float) -> None:
        self.family.end(grace)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=grace)
        self.pipe.close()
        self.free()


class ProcessExecutor:
    """Up to `workers` processes, made when first needed and kept; see `Executor`."""

    def __init__(self, workers: int, resources: Resources | None = None):
        self.workers = workers
        self._resources = resources or Resources()
        self._waiting: deque[tuple[Task, int]] = deque()  # with the number of workers that died under it
        self._workers: list[_Worker] = []
        self._died: dict[int, int] = {}  # id of a worker: how many died under its task before
        self._announced = False

    def has_room(self) -> bool:
        return len(self._waiting) + len(self._busy()) < self.workers

    def submit(self, task: Task) -> None:
        self._waiting.append((task, 0))
        self._start()

    def wait(self) -> Outcome | None:
        while self._waiting or self._busy():
            self._start()
            for ready in connection.wait([w.pipe for w in self._busy()] or [], timeout=POLL) if self._busy() else []:
                outcome = self._hear(next(w for w in self._workers if w.pipe is ready))
                if outcome is not None:
                    return outcome
            if not self._busy():
                self._say_waiting()
                time.sleep(POLL)
            for worker in self._workers:
                worker.family.look()
        return None

    def _say_waiting(self) -> None:
        """Once: all places are taken by other studies of the store."""
        if not self._announced:
            self._announced = True
            channel.send(kind="waiting", message=WAITS)
            if not channel.has_listener():
                print(WAITS, file=sys.stderr, flush=True)

    def stop(self, at_once: bool = False) -> None:
        self._waiting.clear()
        grace = 0.0 if at_once else GRACE
        for worker in self._workers:  # all at once, then each is waited for
            with contextlib.suppress(ProcessLookupError):
                worker.process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)
        for worker in self._workers:
            if not at_once and worker.task is not None:
                self._last_words(worker, grace)
            worker.end(min(grace, 5.0))
        self._workers.clear()

    def _busy(self) -> list[_Worker]:
        return [w for w in self._workers if w.task is not None]

    def _start(self) -> None:
        """Gives waiting tasks, in order, to workers that have a place."""
        while self._waiting:
            task, died = self._waiting[0]
            placed = self._place(task)
            if placed is None:
                return
            self._waiting.popleft()
            worker, lock = placed
            self._died[id(worker)] = died
            worker.give(task, lock)

    def _place(self, task: Task) -> tuple[_Worker, filelock.FileLock | None] | None:
        taken = {w.place for w in self._busy()}
        for place in range(self.workers):
            if place in taken:
                continue
            lock = None
            if not task.coordinator:
                lock = filelock.FileLock(places_folder() / f"{platform.node()}-{place}.lock")
                try:
                    lock.acquire(blocking=False)
                except filelock.Timeout:
                    continue
            idle = next((w for w in self._workers if w.place == place and w.coordinator == task.coordinator), None)
            if idle is not None and idle.process.poll() is None:
                return idle, lock
            if idle is not None:
                self._remove(idle)
            worker = _Worker(place, self._environment(place, task.coordinator), task.coordinator)
            self._workers.append(worker)
            return worker, lock
        return None

    def _environment(self, place: int, coordinator: bool) -> dict[str, str]:
        if coordinator:
            return {}
        threads = self._resources.threads or max(1, cores() // self.workers)
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        return limits | gpu_environment(place, self._resources.gpus)

    def _hear(self, worker: _Worker) -> Outcome | None:
        """One message of a worker: answered, or the end of its task; a broken pipe is a worker that died."""
        task = worker.task
        try:
            kind, *content = worker.pipe.recv()
        except (EOFError, OSError):
            return self._lost(worker)
        if kind == "message":
            worker.answer(content[0])
            return None
        worker.free()
        if kind == "value":
            return Outcome(task, value=content[0])
        return Outcome(task, error=content[0], details=content[1])

    def _lost(self, worker: _Worker) -> Outcome | None:
        task, died = worker.task, self._died.pop(id(worker), 0) + 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(timeout=1.0)  # for its exit code
        worker.end(grace=1.0)
        self._workers.remove(worker)
        if died <= task.retries:
            self._waiting.appendleft((task, died))
            return None
        code = worker.process.returncode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        times = "" if died == 1 else f", {died} times"
        return Outcome(task, error=f"its worker ended {how}{times} (out of memory?)", died=True)

    def _last_words(self, worker: _Worker, grace: float) -> None:
        """Answers what a stopping task still says, so that it can come to its end."""
        deadline = time.monotonic() + grace
        with contextlib.suppress(EOFError, OSError):
            while time.monotonic() < deadline:
                if worker.pipe.poll(POLL):
                    kind, *content = worker.pipe.recv()
                    if kind != "message":
                        return
                    worker.answer(content[0])
                elif worker.process.poll() is not None:
                    return

    def _remove(self, worker: _Worker) -> None:
        worker.end(grace=1.0)
        self._workers.remove(worker)


def places_folder() -> Path:
    """Where the locks of this store's places lie."""
    folder = root() / "mlruns" / "locks" / "places"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def visible_gpus() -> list[str]:
    """The names of this machine's GPUs, as CUDA_VISIBLE_DEVICES has them; WORKBENCH_GPUS (a number) pretends that
    there are some, to try placement without any."""
    if (pretended := pretended_gpus()) is not None:
        return [str(i) for i in range(pretended)]
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(i) for i in range(torch.cuda.device_count())]


def pretended_gpus() -> int | None:
    """What WORKBENCH_GPUS says; None where it says nothing."""
    text = os.environ.get("WORKBENCH_GPUS")
    if not text:
        return None
    if not text.isdigit():
        raise WorkbenchError(f"WORKBENCH_GPUS (={text}) must be a number of GPUs to pretend, or unset.")
    return int(text)


def gpu_environment(place: int, gpus: float | None) -> dict[str, str]:
    """The GPU of the worker at `place`: the next one, its share of one, or with `gpus` 0 none of those there are."""
    names = visible_gpus()
    share = 1.0 if gpus is None else gpus
    if not names:
        return {}
    if share == 0:
        return {"CUDA_VISIBLE_DEVICES": ""}
    per_gpu = max(1, int(1 / share + 1e-9))
    return {"CUDA_VISIBLE_DEVICES": names[place // per_gpu % len(names)]}
