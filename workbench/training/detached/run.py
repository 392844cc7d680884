"""Runs a plan on a machine that has only what stands below the wall: on all of its GPUs, resumable, into one folder.

This process hands out trainings and is the only one that writes to the folder. Checkpoints are made in a scratch folder
and go into the folder's archive every minute. What the folder holds is enough to go on after any interruption.
"""

import dataclasses
import hashlib
import importlib.util
import multiprocessing.connection
import os
import shutil
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm

from workbench.errors import WorkbenchError
from workbench.machine import cores
from workbench.networks import build_network
from workbench.training.config import TrainConfig, TrainResult, code_hash, training_key
from workbench.training.detached.archive import Archive
from workbench.training.detached.plan import Plan, Planned, read_plan
from workbench.training.detached.records import Record
from workbench.training.detached.results import Results
from workbench.training.detached.worker import Seat, Task, Worker, seats
from workbench.training.distributed import World
from workbench.training.inputs import source, source_digest
from workbench.training.setup import initial_model, steps_of

ATTEMPTS = 2  # of a training whose process is killed
TICK = 0.1  # seconds between looks at signals and clocks
STATUS_SECONDS = 60.0  # between lines on what runs, where there is no terminal for a bar


@dataclass
class Summary:
    """What a run did: numbers of trainings that were `known` before, `done` now and are `left`; `failed` by name and
    cause."""

    known: int = 0
    done: int = 0
    left: int = 0
    failed: list[str] = field(default_factory=list)


def run_plan(
    file: str | Path,
    out: str | Path,
    *,
    device: str = "auto",
    workers: int | None = None,
    keep_weights: bool = False,
    limit_minutes: float | None = None,
    other_code: bool = False,
    checkpoint_seconds: float = 60.0,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Trains what `out` does not hold yet, one training a GPU at a time, or `workers` of them.

    Args: `keep_weights` puts the final weights into `out`, too. `limit_minutes` after the start, or once
    `asked_to_stop` says so, nothing more begins, and what is under way is checkpointed and stopped. `other_code` runs a
    plan that other code has made: the keys are then those of the code here.
    Raises: WorkbenchError, before anything runs, for what cannot serve: plan, code, data, device, folder.
    """
    if World.from_environment().size > 1:
        raise WorkbenchError("a plan is spread over the GPUs by itself: start it once, without torchrun.")
    if limit_minutes is not None and not limit_minutes > 0:
        raise WorkbenchError(f"`limit_minutes` (={limit_minutes}) must be above 0.")
    if not checkpoint_seconds > 0:
        raise WorkbenchError(f"`checkpoint_seconds` (={checkpoint_seconds}) must be above 0.")
    deadline = time.monotonic() + 60 * limit_minutes if limit_minutes is not None else float("inf")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    places = seats(device, workers, gpus, cores())
    trainings = ready(read_plan(file), other_code)
    results = Results(out)
    try:
        run = _Run(results, trainings, places, keep_weights, checkpoint_seconds)
        return run.run(lambda: asked_to_stop() or time.monotonic() >= deadline)
    finally:
        results.close()


def ready(plan: Plan, other_code: bool = False) -> list[Planned]:
    """The plan's trainings, each once, with the keys that they have here.

    Raises: WorkbenchError for other code, other data or other weights than the plan's, and for a configuration that
    cannot be served here.
    """
    if plan.code != code_hash() and not other_code:
        raise WorkbenchError(
            f"the plan was made by code {plan.code}, and here is {code_hash()}: check out the same commit here, write "
            "the plan with this one, or run it with --other-code, as trainings that the plan's study will not know."
        )
    digests, trainings = {}, {}
    for training in plan.trainings:
        config = training.config
        where = (config.data, config.stream)
        try:
            if where not in digests:
                digests[where] = source_digest(config)
            if digests[where] != training.data_digest:
                raise WorkbenchError(
                    f"`data` (={config.data}) has the digest {digests[where]} here and {training.data_digest} in the "
                    "plan: bring the same files, or write the plan where these are."
                )
            _refuse_what_cannot_run(config)
            key = training_key(config, digests[where])
            if key != training.key and plan.code == code_hash():
                raise WorkbenchError(
                    f"its key is {key[:16]} here and {training.key[:16]} in the plan: bring the same weights to start "
                    "from, and leave the plan's lines as they were written."
                )
        except WorkbenchError as error:
            raise WorkbenchError(f"{config.name} of the plan cannot run here: {error}") from error
        trainings.setdefault(key, dataclasses.replace(training, key=key))
    return list(trainings.values())


def _refuse_what_cannot_run(config: TrainConfig) -> None:
    data = source(config)
    steps_of(config, len(data.train))
    if config.curvature_every and importlib.util.find_spec("scipy") is None:
        raise WorkbenchError("`curvature_every` needs scipy: `pip install scipy` here, or leave it out.")
    with torch.random.fork_rng(devices=[]):
        if config.weights is not None:
            initial_model(config, data)
        else:
            with torch.device("meta"):
                build_network(config.model, len(data.classes), data.channels, **config.model_args)


class _Run:
    """One start of a plan: who trains what, what comes of it, and what is written when."""

    def __init__(self, results: Results, trainings: list[Planned], places: list[Seat], keep: bool, seconds: float):
        self.results, self.archive, self.seconds = results, Archive(results.folder), seconds
        self.keep_weights, self.planned = keep, len(trainings)
        self.pending = deque(t for t in trainings if not results.finished(t.key))
        self.summary = Summary(known=self.planned - len(self.pending))
        self.idle_seats = list(reversed(places[: len(self.pending)]))
        self.workers: list[Worker] = []
        self.deaths: Counter[str] = Counter()
        self.reported = time.monotonic()
        self.scratch = _scratch(results.folder)
        self.bar = tqdm(total=self.planned, initial=self.summary.known, unit="run", desc="trainings", disable=None)

    def run(self, stop: Callable[[], bool]) -> Summary:
        stopping = False
        try:
            self._begin()
            saved = time.monotonic()
            while self.pending or self._busy():
                if not stopping and stop():
                    stopping = True
                    self._say(f"stopping: {len(self._busy())} trainings write their checkpoints")
                    for worker in self._busy():
                        worker.stop()
                if stopping and not self._busy():
                    break
                if not stopping:
                    self._hand_out()
                self._listen()
                if time.monotonic() - saved >= self.seconds:
                    self._save()
                    saved = time.monotonic()
            self._save()
        finally:
            for worker in self.workers:
                worker.end(kill=worker.task is not None)
            self.bar.close()
            shutil.rmtree(self.scratch, ignore_errors=True)
        self.summary.left = self.planned - self.summary.known - self.summary.done - len(self.summary.failed)
        return self.summary

    def _begin(self) -> None:
        resumed = self.archive.unpack(self.scratch)
        for place in self.scratch.iterdir():  # finished after the last archive was written
            if self.results.finished(place.name):
                shutil.rmtree(place)
        half = sum((self.scratch / place).is_dir() for place in resumed)
        devices = ", ".join(seat.name for seat in reversed(self.idle_seats))
        counts = f"{self.planned} trainings, {self.summary.known} of them finished before, {half} half-done"
        self._say(f"{counts}; on {devices}" if devices else counts)

    def _busy(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.task is not None]

    def _hand_out(self) -> None:
        """Gives every worker a task, and starts one at a free seat while there is something to do."""
        while self.pending:
            free = next((worker for worker in self.workers if worker.task is None), None)
            if free is None:
                if not self.idle_seats:
                    return
                free = Worker(self.idle_seats.pop())
                self.workers.append(free)
            training = self.pending.popleft()
            weights = f"{training.config.name.replace(' ', '_')}-{training.key[:8]}.safetensors"
            save = self.results.folder / weights if self.keep_weights else None
            free.give(Task(training, self.scratch / training.key, self.seconds, save))
            self.bar.set_postfix_str(self._running())

    def _listen(self) -> None:
        """Takes in what the workers have to say, waiting for a moment where they say nothing."""
        talking = {worker.connection: worker for worker in self.workers}
        for connection in multiprocessing.connection.wait(list(talking), timeout=TICK):
            worker = talking[connection]
            try:
                message = connection.recv()
            except (EOFError, OSError):
                self._died(worker)
                continue
            getattr(self, f"_on_{message[0]}")(worker, *message[1:])
        for worker in list(self.workers):  # children of a killed process may hold its pipe open for a while
            if worker.process.exitcode is not None and not worker.connection.poll():
                self._died(worker)

    def _on_row(self, worker: Worker, row: dict) -> None:
        worker.row = row
        self.bar.set_postfix_str(self._running())

    def _on_done(self, worker: Worker, result: TrainResult, tables: dict, started: float, ended: float) -> None:
        training = worker.task.training
        self.results.add(_record(training, result, started, ended), tables)
        shutil.rmtree(worker.task.folder, ignore_errors=True)
        worker.task = None
        self.summary.done += 1
        self.bar.update()
        accuracy = f"val_acc {result.metrics['val_acc']:.4f}" if result.outcome == "complete" else result.cause
        self._say(f"{result.outcome}: {result.config.name}, {accuracy}, {result.seconds:.0f} s on {worker.seat.name}")

    def _on_failed(self, worker: Worker, cause: str) -> None:
        self._failed(worker.task.training, cause)
        self._leave(worker)

    def _on_stopped(self, worker: Worker) -> None:
        self._leave(worker)

    def _died(self, worker: Worker) -> None:
        """A training whose process was killed is tried once more, from its last checkpoint."""
        task, code = worker.task, worker.end()
        if task is not None:
            training, cause = task.training, f"its process ended with exit code {code}"
            self.deaths[training.key] += 1
            if self.deaths[training.key] < ATTEMPTS:
                self._say(f"once more: {training.config.name}, for {cause}")
                self.pending.appendleft(training)
            else:
                self._failed(training, f"{cause}, {ATTEMPTS} times (-9: killed, as where memory is short)")
        self._leave(worker)

    def _failed(self, training: Planned, cause: str) -> None:
        now = time.time()
        known = {"versions": {"torch": torch.__version__}, "data_digest": training.data_digest, "code": code_hash()}
        result = TrainResult(training.key, training.config, "failed", [], {}, cause, **known)
        self.results.add(_record(training, result, now, now), {})
        self.summary.failed.append(f"{training.config.name}: {cause}")
        self.bar.update()
        self._say(f"failed: {training.config.name}: {cause}")

    def _leave(self, worker: Worker) -> None:
        worker.task = None
        worker.end()
        self.workers.remove(worker)
        self.idle_seats.append(worker.seat)

    def _save(self) -> None:
        self.archive.pack(self.scratch)
        self.results.write_history()
        if self.bar.disable and self._busy() and time.monotonic() - self.reported >= STATUS_SECONDS:
            self._say(f"running: {self._running()}")
            self.reported = time.monotonic()

    def _running(self) -> str:
        return "; ".join(f"{w.task.training.config.name} step {w.row.get('step', 0)}" for w in self._busy())

    def _say(self, text: str) -> None:
        done = self.summary.known + self.summary.done + len(self.summary.failed)
        self.bar.write(f"{time.strftime('%H:%M:%S')} {done}/{self.planned} {text}", file=sys.stderr)
        sys.stderr.flush()


def _record(training: Planned, result: TrainResult, started: float, ended: float) -> Record:
    asked = {name: getattr(training, name) for name in ("study", "mode", "role", "arm", "owner")}
    return Record(result, started=started, ended=ended, **asked)


def _scratch(folder: Path) -> Path:
    """An empty place for checkpoints outside `folder`, on this machine's own disk; one that an earlier run on `folder`
    left when it was killed is removed, which its lock makes safe."""
    name = f"workbench-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}-"
    for old in Path(tempfile.gettempdir()).glob(f"{name}*"):
        shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=name))
