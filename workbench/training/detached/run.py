"""Run a plan on all GPUs of a machine without tracking, into one folder.

This process gives trainings to the pool and writes the results. The workers write the checkpoints. The folder contains
everything that is needed to continue after an interruption.
"""

import dataclasses
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from workbench.bars import bar, write
from workbench.errors import WorkbenchError
from workbench.machine import cores
from workbench.outcomes import COMPLETE, FAILED
from workbench.pool import Outcome, Pool, Seat, Task, seats, visible_gpus
from workbench.training.config import TrainConfig, TrainResult, code_hash
from workbench.training.detached.plan import Planned, read_plan
from workbench.training.detached.readiness import ready
from workbench.training.detached.records import Record
from workbench.training.detached.results import Results
from workbench.training.detached.transport import pack_folder
from workbench.training.distributed import World
from workbench.training.setup import pick_device
from workbench.training.worker_task import CHECKPOINT_SECONDS, TASK
from workbench.unexpected import saved

LOADERS = 16  # largest number of processes that decode streamed images for one training


@dataclass
class Summary:
    """The outcome of a run.

    Attributes:
        known: Trainings that were finished before.
        done: Trainings that finished now.
        left: Trainings that are not finished.
        failed: Name and cause of each training that failed.
        packed: The tar of the folder, or None.
    """

    known: int = 0
    done: int = 0
    left: int = 0
    failed: list[str] = field(default_factory=list)
    packed: Path | None = None


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
    pack: bool = False,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Run all trainings of a plan that `out` does not contain yet.

    Args:
        file: The plan.
        out: The folder of results and checkpoints.
        device: auto and cuda (all GPUs), cuda:1, cpu or mps.
        workers: Trainings at the same time. None: one per GPU, or one.
        keep_weights: Also write the final weights to `out`.
        limit_minutes: Minutes until the running trainings write their checkpoints and stop.
        other_code: Run a plan that other code made. The keys are then those of the code here.
        checkpoint_seconds: Seconds between checkpoints.
        pack: Write a tar of `out` next to it at the end.
        asked_to_stop: Called several times per second. If it returns True, the run stops as after `limit_minutes`.

    Returns:
        The numbers of trainings that are done, failed and left.

    Raises:
        WorkbenchError: Before anything runs, if plan, code, data, device or folder cannot be used.
    """
    if (size := World.from_environment().size) > 1:
        raise WorkbenchError(
            f"A plan must be started once, without torchrun, got WORLD_SIZE={size}. It uses all GPUs by itself."
        )
    if limit_minutes is not None and not limit_minutes > 0:
        raise WorkbenchError(f"`limit_minutes` must be above 0, got {limit_minutes}.")
    if not checkpoint_seconds > 0:
        raise WorkbenchError(f"`checkpoint_seconds` must be above 0, got {checkpoint_seconds}.")
    deadline = time.monotonic() + 60 * limit_minutes if limit_minutes is not None else float("inf")
    kind, places = seats_on(device, workers)
    trainings = ready(read_plan(file), other_code)
    results = Results(out)
    try:
        run = _Run(results, trainings, kind, places, keep_weights, checkpoint_seconds)
        summary = run.run(lambda: asked_to_stop() or time.monotonic() >= deadline)
        if pack:
            summary.packed = pack_folder(results.folder)
        return summary
    finally:
        results.close()


def seats_on(device: str, workers: int | None) -> tuple[str, list[Seat]]:
    """Return the kind of device, and the seats on it.

    Args:
        device: auto and cuda (all GPUs), cuda:1, cpu or mps.
        workers: Number of seats. None: one per GPU, or one.

    Raises:
        WorkbenchError: For a device that this machine lacks, and for fewer than one worker.
    """
    if workers is not None and workers < 1:
        raise WorkbenchError(f"`workers` must be at least 1, got {workers}.")
    chosen = pick_device(device)
    gpus = visible_gpus() if chosen.type == "cuda" else []
    if ":" in device:
        gpus = gpus[chosen.index :][:1]
    return chosen.type, seats(workers or max(1, len(gpus)), gpus)


def placed(config: TrainConfig, kind: str, places: int) -> TrainConfig:
    """Return the configuration on this kind of device.

    Streamed images get a share of the cores.

    Args:
        config: The configuration.
        kind: cuda, cpu or mps.
        places: Trainings at the same time.
    """
    loaders = {"workers": min(LOADERS, max(1, cores() // places))} if config.stream else {}
    return config.replace(device=kind, progress=False, **loaders)


class _Run:
    """One start of a plan: it hands out the trainings and collects their results."""

    def __init__(
        self, results: Results, trainings: list[Planned], kind: str, places: list[Seat], keep: bool, seconds: float
    ):
        self.results, self.kind, self.keep_weights, self.seconds = results, kind, keep, seconds
        self.planned = len(trainings)
        self.pending = deque(training for training in trainings if not results.finished(training.key))
        self.summary = Summary(known=self.planned - len(self.pending))
        self.pool = Pool(places, on_retry=self._retrying, inherit=[results.descriptor])
        self.running: dict[str, tuple[Planned, float]] = {}  # by key, with the start time
        self.rows: dict[str, dict] = {}  # the last of each
        self.tables: dict[str, dict[str, pd.DataFrame]] = {}
        self.bar = bar(self.planned, done=self.summary.known, unit="run", desc="trainings", leave=True)

    def run(self, stop: Callable[[], bool]) -> Summary:
        """Run until all trainings are done, or until `stop` returns True."""
        half = sum(self.results.checkpoints(training.key).is_dir() for training in self.pending)
        counts = f"{self.planned} trainings, {self.summary.known} finished before, {half} half-done"
        self._report(f"{counts}; {self.pool.workers} at the same time on {self.kind}" if self.pending else counts)
        try:
            while (self.pending or self.running) and not stop():
                while self.pending and self.pool.has_room():
                    self._begin(self.pending.popleft())
                if (outcome := self.pool.wait(until=lambda: self._show() or stop())) is not None:
                    self._ended(outcome)
            if self.running:
                self._report(f"stopping: {len(self.running)} trainings write their checkpoints")
                self.pool.interrupt()
            while (outcome := self.pool.wait()) is not None:
                self._ended(outcome)
        finally:
            self.pool.stop(at_once=True)
            self.bar.close()
        self.results.write_history()
        self.summary.left = self.planned - self.summary.known - self.summary.done - len(self.summary.failed)
        return self.summary

    def _begin(self, training: Planned) -> None:
        config = placed(training.config, self.kind, self.pool.workers)
        weights = f"{config.name.replace(' ', '_')}-{training.key[:8]}.safetensors"
        arguments = {
            "config": config.to_dict(),
            "folder": str(self.results.checkpoints(training.key)),
            "save": str(self.results.folder / weights) if self.keep_weights else None,
        }
        self.running[training.key] = training, time.time()
        self.rows[training.key], self.tables[training.key] = {"step": 0}, {}
        self.pool.submit(
            Task(
                training.key,
                TASK,
                arguments,
                on_message=partial(self._on_message, training.key),
                environment={CHECKPOINT_SECONDS: str(self.seconds)},
            )
        )

    def _on_message(self, key: str, message: tuple) -> None:
        kind, *content = message
        if kind == "table":
            name, self.tables[key][name] = content
            return
        (self.rows[key],) = content

    def _ended(self, outcome: Outcome) -> None:
        training, started = self.running.pop(outcome.task.name)
        tables = self.tables.pop(training.key)
        if outcome.stopped:
            self.pending.appendleft(training)
        elif outcome.error is not None:
            self._failed(training, started, f"{outcome.error}{_where(outcome)}")
        else:
            result = dataclasses.replace(TrainResult.from_json(outcome.value), config=training.config)
            self.results.add(_record(training, result, started), tables)
            self.summary.done += 1
            self.bar.update()
            accuracy = f"val_acc {result.metrics['val_acc']:.4f}" if result.outcome == COMPLETE else result.cause
            self._report(f"{result.outcome}: {result.config.name}, {accuracy}, {result.seconds:.0f} s")

    def _failed(self, training: Planned, started: float, cause: str) -> None:
        known = {"versions": {"torch": torch.__version__}, "data_digest": training.data_digest, "code": code_hash()}
        result = TrainResult(training.key, training.config, FAILED, [], {}, cause[:2000], **known)
        self.results.add(_record(training, result, started), {})
        self.summary.failed.append(f"{training.config.name}: {cause}")
        self.bar.update()
        self._report(f"failed: {training.config.name}: {cause}")

    def _retrying(self, task: Task, cause: str) -> None:
        training, _ = self.running[task.name]
        self._report(f"trying again: {training.config.name} ({cause})")

    def _show(self) -> None:
        """Show the last step of every training that runs."""
        steps = [_last_step(training.config.name, self.rows[key]) for key, (training, _) in self.running.items()]
        self.bar.set_postfix_str("; ".join(steps))

    def _report(self, text: str) -> None:
        done = self.summary.known + self.summary.done + len(self.summary.failed)
        write(f"{time.strftime('%H:%M:%S')} {done}/{self.planned} {text}")
        sys.stderr.flush()


def _where(outcome: Outcome) -> str:
    """Return where the traceback of a task's error is, unless the user can correct the error."""
    return f" ({saved(outcome.details)})" if outcome.unexpected else ""


def _last_step(name: str, row: dict) -> str:
    loss = f", loss {row['train_loss']:.3f}" if "train_loss" in row else ""
    return f"{name} step {row['step']}{loss}"


def _record(training: Planned, result: TrainResult, started: float) -> Record:
    labels = {name: getattr(training, name) for name in ("study", "mode", "role", "arm", "owner")}
    return Record(result, started=started, ended=time.time(), **labels)
