"""One process that trains what it is handed, one training after another, on one device; and the place it works at.

Over a pipe it gets a Task at a time and answers ("row", row) at every evaluation and at last ("done", ...), ("failed",
cause) or ("stopped",). Whatever else arrives while it trains means: write a checkpoint and stop. Ctrl-C and TERM are
left to the process that started it, and when that dies it ends, too.
"""

import contextlib
import dataclasses
import multiprocessing as mp
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.training.checkpoint import Checkpoints
from workbench.training.config import TrainConfig
from workbench.training.detached.plan import Planned
from workbench.training.loop import train

SIGNALS = {signal.SIGINT, signal.SIGTERM}
STOP = "stop"
GRACE = 30.0  # seconds for a process to end that has nothing to do any more


@dataclass(frozen=True)
class Task:
    """A training, where its checkpoints go and how often, and where its weights are kept, if they are."""

    training: Planned
    folder: Path
    checkpoint_seconds: float
    save: Path | None


@dataclass(frozen=True)
class Seat:
    """Where one training runs at a time: `visible` is the one GPU that its process sees, None for other devices;
    `threads` and `loaders` are its share of the cores."""

    name: str
    device: str
    visible: str | None
    threads: int
    loaders: int


class Stopped(Exception):
    """The training was asked to stop, and its checkpoint is written."""


class InterruptedCheckpoints(Checkpoints):
    """Writes one more checkpoint once `asked` says so, and breaks off."""

    def __init__(self, folder: Path, every_seconds: float, asked: Callable[[], bool]):
        super().__init__(folder, every_seconds)
        self._asked = asked

    def due(self, step: int) -> bool:
        return self._asked() or super().due(step)

    def save(self, *args) -> None:
        super().save(*args)
        if self._asked():
            raise Stopped


def seats(device: str, workers: int | None, gpus: int, cores: int) -> list[Seat]:
    """As many as `workers`, dealt out over the devices that `device` means: all `gpus` (auto, cuda), one of them
    (cuda:1), or the CPU, mps. By default one a GPU, else one.

    Raises: WorkbenchError for a device that is not here, and fewer workers than one.
    """
    if workers is not None and workers < 1:
        raise WorkbenchError(f"`workers` (={workers}) must be at least 1.")
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (index and (kind != "cuda" or not index.isdecimal())):
        raise unknown("device", device, ["auto", "cpu", "cuda", "cuda:0", "mps"])
    if kind == "auto":
        kind = "cuda" if gpus else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise WorkbenchError("`device` (=mps) is not on this machine: use --device auto.")
    chosen = [None]
    if kind == "cuda":
        chosen = [int(index)] if index else list(range(gpus))
        if not chosen or max(chosen) >= gpus:
            raise WorkbenchError(f"`device` (={device}) is not on this machine, which has {gpus} GPUs: use auto.")
    n = workers or len(chosen)
    share = max(1, cores // n)
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    places = []
    for i in range(n):
        gpu = chosen[i % len(chosen)]
        visible = None if gpu is None else names[gpu] if gpu < len(names) else str(gpu)
        places.append(Seat(kind if gpu is None else f"cuda:{gpu}", kind, visible, share, min(16, share)))
    return places


class Worker:
    """The process at a seat, and the task that it has."""

    def __init__(self, seat: Seat):
        self.seat, self.task, self.row = seat, None, {}
        self.connection, theirs = mp.Pipe()
        self.process = mp.get_context("spawn").Process(target=_work, args=(theirs, seat), daemon=False)
        inherited = {"TQDM_DISABLE": "1"}
        if "OMP_NUM_THREADS" not in os.environ:
            inherited["OMP_NUM_THREADS"] = str(seat.threads)
        if seat.visible is not None:
            inherited["CUDA_VISIBLE_DEVICES"] = seat.visible
        resource_tracker.ensure_running()  # which lets signals through again when it starts
        with _environment(inherited), _signals_held():
            self.process.start()
        theirs.close()  # so that our end reports the death of the other

    def give(self, task: Task) -> None:
        """Hands over a task; a process that is dead meanwhile is found out when its answer is read."""
        self.task, self.row = task, {}
        self._send(task)

    def stop(self) -> None:
        """Asks it to write a checkpoint and stop."""
        self._send(STOP)

    def end(self, kill: bool = False) -> int | None:
        """Ends the process, an idle one politely; returns its exit code."""
        if kill:
            self.process.kill()
        self.connection.close()
        self.process.join(GRACE)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        return self.process.exitcode

    def _send(self, message) -> None:
        with contextlib.suppress(OSError):
            self.connection.send(message)


def _work(connection: Connection, seat: Seat) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while isinstance(task := connection.recv(), Task):
            answer = _trained(task, seat, connection)
            connection.send(answer)
            if answer[0] != "done":  # an error may have left a GPU unusable: the next training gets a new process
                return


def _trained(task: Task, seat: Seat, connection: Connection) -> tuple:
    config, tables, started = task.training.config, {}, time.time()
    checkpoints = InterruptedCheckpoints(task.folder, task.checkpoint_seconds, connection.poll)
    try:
        if seat.device == "cuda":
            torch.cuda.empty_cache()
        result = train(
            on_seat(config, seat),
            lambda row: connection.send(("row", row)),
            lambda name, table: tables.update({name: table}),
            checkpoints=checkpoints,
            save=task.save,
        )
    except Stopped:
        return ("stopped",)
    except Exception as error:  # out of memory, say: the other trainings go on
        return "failed", f"{type(error).__name__}: {error}"[:2000]
    return "done", dataclasses.replace(result, config=config), tables, started, time.time()


def on_seat(config: TrainConfig, seat: Seat) -> TrainConfig:
    """The same training, where the seat has it run."""
    return config.replace(device=seat.device, progress=False, **({"workers": seat.loaders} if config.stream else {}))


def _die_with_parent() -> None:
    mp.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """What a process that starts within it inherits."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """A process that starts within it sees no Ctrl-C before it can say what to do with one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
