"""A job and its run of the store: known already, or open while it trains and closed when it ends.

A worker leaves the result next to the checkpoints before the store has it. So a store that is out of reach, or a
process that is killed between the two, loses nothing: the next one who asks finds the result there.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from workbench.lab.executors import Outcome, Task, channel
from workbench.lab.jobs.job import Job, JobResult
from workbench.lab.store import retention
from workbench.lab.store.client import UNREACHABLE, Store
from workbench.lab.store.locations import runs_folder
from workbench.lab.studies.session import Session
from workbench.training import TrainResult, planned, training_key, worker_task
from workbench.training.detached.plan import Planned
from workbench.training.distributed import World
from workbench.training.inputs import source_digest

FLUSH_EVERY = 5.0  # seconds between writes of rows


def checkpoints_folder(mode: str, key: str) -> Path:
    """Where the checkpoints of the training with this key lie."""
    return runs_folder() / "checkpoints" / f"{mode}-{key[:32]}"


class JobRun:
    """From `reserve` to `ended`, in this order: reserve, known, begin, ended; or `interrupted`."""

    def __init__(self, job: Job, session: Session, on_row: Callable[[Job, dict], None] = lambda job, row: None):
        self.job, self.config = job, planned(job.arm.config)
        self._session, self._on_row = session, on_row
        self.key = training_key(self.config, source_digest(self.config))
        self.folder = checkpoints_folder(session.mode, self.key)
        self._lock = session.store.lock(f"{session.mode}-{self.key}")
        self._run: str | None = None
        self._rows: list[dict] = []
        self._seen = 0  # the step of the last row
        self._flushed = time.monotonic()

    def reserve(self) -> bool:
        """Takes the training; False where another process is at it, or an equal one is under way here."""
        return self._session.store.reserve(self._lock)

    def known(self) -> JobResult | None:
        """The finished training with this key, if the store has it."""
        stored = None
        if self.job.save is None:
            stored = self._session.store.find_training(self.key, self._session.mode)
        World.from_environment().agree(None if stored is not None else str(self.folder))
        if stored is None:
            return None
        self._lock.release()
        return self._result(*stored, reused=True)

    def planned(self) -> Planned:
        """The training as a line of a plan."""
        session = self._session
        asked = {"study": session.study, "mode": session.mode, "role": self.job.role, "arm": self.job.arm.label}
        return Planned.of(self.config, **asked)

    def begin(self, *, here: bool) -> Task:
        """Opens the run, and returns the task that trains; `here` is this process, with its terminal and its GPUs."""
        retention.diverged_bytes()  # refuse it now, not when the training is over
        config, session, job = self.config, self._session, self.job
        self._run = session.store.open_training(
            config, self.key, session.mode, role=job.role, arm=job.arm.label, owner=session.run_id
        )
        alone = here and not channel.has_listener()
        device = config.device if here else config.device.split(":")[0]  # a worker sees one GPU, the first
        arguments = {
            "config": config.replace(progress=config.progress and alone, device=device).to_dict(),
            "folder": str(self.folder),
            "save": self.job.save,
        }
        return Task(self.key, worker_task.TASK, arguments, self._hear)

    def ended(self, outcome: Outcome) -> JobResult:
        """Puts what came of it into the store."""
        if outcome.error is not None:
            status = "KILLED" if outcome.stopped or outcome.died else "FAILED"
            self._close(status, outcome.error, outcome.details)
            return JobResult(self.job, self._run, error=outcome.error, details=outcome.details)
        result = dataclasses.replace(TrainResult.from_json(outcome.value), config=self.config)
        try:
            self._flush()
            self._session.store.finish_training(self._run, result)
        except UNREACHABLE as error:
            self._lock.release()
            lost = (
                f"the store is out of reach ({str(error).splitlines()[0]}); the result is kept, start again to log it"
            )
            return JobResult(self.job, self._run, error=lost)
        retention.settle(self.folder, diverged=result.outcome == "diverged")
        self._lock.release()
        return self._result(self._run, result, reused=False)

    def interrupted(self) -> None:
        """Closes the run of a training that was stopped."""
        self._close("KILLED", "interrupted", "")

    def _hear(self, message: tuple) -> object:
        kind, *content = message
        if kind == "row":
            (row,) = content
            if row["step"] > self._seen:  # a worker that goes on for one that died sends all of them again
                self._rows.append(row | {"time": time.time()})  # sent again with the same time, it is the same point
                self._seen = row["step"]
            if time.monotonic() - self._flushed >= FLUSH_EVERY:
                with contextlib.suppress(*UNREACHABLE):  # they stay, for the next time
                    self._flush()
            self._on_row(self.job, row)
            return bool(self.job.watch and self.job.watch(row))
        with contextlib.suppress(*UNREACHABLE):
            log_measured(self._session.store, self._run, *content)
        return None

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        self._session.store.log_rows(self._run, self._rows)
        self._rows = []

    def _close(self, status: str, cause: str, details: str) -> None:
        store = self._session.store
        if self._run is None:  # the store would not even open it
            self._lock.release()
            return
        with contextlib.suppress(*UNREACHABLE):
            self._flush()
            store.set_tags(self._run, outcome="failed", cause=cause[:500])
            if details:
                store.log_text(self._run, details, "error.txt")
            store.close(self._run, status)
        self._lock.release()

    def _result(self, run_id: str, result: TrainResult, *, reused: bool) -> JobResult:
        if self._session.run_id is not None:
            self._session.store.tag_study(run_id, self._session.study, self._session.run_id)
        return JobResult(self.job, run_id, result, reused)


def log_measured(store: Store, run_id: str, name: str, table: pd.DataFrame) -> None:
    """What a training measured of itself (agc, signal, curvature): the table, and its figure where it has one."""
    from workbench.lab import plots

    store.log_table(run_id, table, name)
    figures = {"signal": plots.signal_over_time_figure, "curvature": plots.curvature_figure}
    if name in figures:
        store.log_figure(run_id, figures[name](table), name)
