"""A job and its run in the store: finished already, or open during the training.

A worker writes the result next to the checkpoints before the store receives it. So nothing is lost if the store is
unreachable, or if the process is killed in between: the next start finds the result.
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
from workbench.lab.store.client import UNREACHABLE, RunIsGone, Store
from workbench.lab.store.locations import runs_folder
from workbench.lab.store.locks import holder
from workbench.lab.studies.session import Session
from workbench.outcomes import DIVERGED, FAILED
from workbench.training import TrainResult, planned, training_key, worker_task
from workbench.training.detached.plan import Planned
from workbench.training.distributed import World
from workbench.training.inputs import source_digest

FLUSH_EVERY = 5.0  # seconds between writes of rows


def checkpoints_folder(mode: str, key: str) -> Path:
    """Return the folder for the checkpoints of the training with this key."""
    return runs_folder() / "checkpoints" / f"{mode}-{key[:32]}"


class JobRun:
    """Takes a job through the store.

    Call its methods in this order: reserve, known, begin, then ended or interrupted.

    Args:
        job: The training.
        session: Its store, study and mode.
        on_row: Called with the job and each history row.
    """

    def __init__(self, job: Job, session: Session, on_row: Callable[[Job, dict], None] = lambda job, row: None):
        self.job, self.config = job, planned(job.arm.config)
        self._session, self._on_row = session, on_row
        self.key = training_key(self.config, source_digest(self.config))
        self.folder = checkpoints_folder(session.mode, self.key)
        self._lock = session.store.lock(f"{session.mode}-{self.key}")
        self._run: str | None = None
        self._rows: list[dict] = []
        self._seen = 0  # step of the last row
        self._flushed = time.monotonic()

    def reserve(self) -> bool:
        """Lock the training. False: another process runs it, or an equal job runs here."""
        return self._session.store.reserve(self._lock)

    def holder(self) -> str:
        """Name the process that has locked the training."""
        return holder(Path(self._lock.lock_file))

    def known(self) -> JobResult | None:
        """Return the finished training with this key. None: the store has none."""
        stored = None
        if self.job.save is None:
            stored = self._session.store.find_training(self.key, self._session.mode)
        World.from_environment().agree(None if stored is not None else str(self.folder))
        if stored is None:
            return None
        self._lock.release()
        return self._result(*stored, reused=True)

    def planned(self) -> Planned:
        """Return the training as a line of a plan."""
        session = self._session
        origin = {"study": session.study, "mode": session.mode, "role": self.job.role, "arm": self.job.arm.label}
        return Planned.of(self.config, **origin)

    def begin(self, *, here: bool) -> Task:
        """Open the run, and return the task that trains.

        Args:
            here: Whether the task runs in this process, with its terminal and all its GPUs.
        """
        retention.diverged_bytes()  # raises for an invalid setting now, not after the training, and so does the next
        worker_task.checkpoint_seconds()
        config, job = self.config, self.job
        self._run = self._opened()
        alone = here and not channel.has_listener()
        device = config.device if here else config.device.split(":")[0]  # a worker sees only one GPU, as the first
        arguments = {
            "config": config.replace(progress=config.progress and alone, device=device).to_dict(),
            "folder": str(self.folder),
            "save": job.save,
        }
        return Task(self.key, worker_task.TASK, arguments, self._hear)

    def _opened(self) -> str:
        """Open a run for this training and return its id."""
        session, job = self._session, self.job
        return session.store.open_training(
            self.config, self.key, session.mode, role=job.role, arm=job.arm.label, owner=session.run_id
        )

    def ended(self, outcome: Outcome) -> JobResult:
        """Put the outcome into the store, and close the run."""
        if outcome.error is not None:
            status = "KILLED" if outcome.stopped or outcome.died else "FAILED"
            self._close(status, outcome.error, outcome.details)
            broken = {"error": outcome.error, "details": outcome.details, "unexpected": outcome.unexpected}
            return JobResult(self.job, self._run, **broken)
        result = dataclasses.replace(TrainResult.from_json(outcome.value), config=self.config)
        try:
            self._keep(result)
        except UNREACHABLE as error:
            self._lock.release()
            cause = str(error).splitlines()[0]
            unlogged = f"cannot write to the store ({cause}). The result is kept: start again to log it"
            return JobResult(self.job, self._run, error=unlogged)
        retention.settle(self.folder, diverged=result.outcome == DIVERGED)
        self._lock.release()
        return self._result(self._run, result, reused=False)

    def _keep(self, result: TrainResult) -> None:
        """Put the result into its run, or into a new run if that one was deleted for good meanwhile."""
        store = self._session.store
        try:
            self._flush()
            store.finish_training(self._run, result)
        except RunIsGone:
            channel.announce(f"the run of {self.job.name} was deleted in MLflow: a new run takes its result")
            self._run = self._opened()
            store.log_rows(self._run, result.history)
            for file in sorted(self.folder.glob("*.parquet")):
                log_measured(store, self._run, file.stem, pd.read_parquet(file))
            store.finish_training(self._run, result)

    def interrupted(self) -> None:
        """Close the run of a training that was stopped."""
        self._close("KILLED", "interrupted", "")

    def _hear(self, message: tuple) -> object:
        kind, *content = message
        if kind == "row":
            (row,) = content
            if row["step"] > self._seen:  # a retried worker sends the first rows again
                self._rows.append(
                    row | {"time": time.time()}
                )  # with the same time the store counts a repeated point once
                self._seen = row["step"]
            if time.monotonic() - self._flushed >= FLUSH_EVERY:
                with contextlib.suppress(*UNREACHABLE):  # the rows stay for the next flush
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
        if self._run is None:  # the store refused to open the run
            self._lock.release()
            return
        with contextlib.suppress(*UNREACHABLE):
            self._flush()
            store.set_tags(self._run, outcome=FAILED, cause=cause[:500])
            if details:
                store.log_text(self._run, details, "error.txt")
            store.close(self._run, status)
        self._lock.release()

    def _result(self, run_id: str, result: TrainResult, *, reused: bool) -> JobResult:
        if self._session.run_id is not None:
            self._session.store.tag_study(run_id, self._session.study, self._session.run_id)
        return JobResult(self.job, run_id, result, reused)


def log_measured(store: Store, run_id: str, name: str, table: pd.DataFrame) -> None:
    """Log a table that a training measured, with its figure for signal and curvature.

    Args:
        store: The store.
        run_id: Run of the training.
        name: "agc", "signal" or "curvature".
        table: The measurements.
    """
    from workbench.lab import plots

    store.log_table(run_id, table, name)
    figures = {"signal": plots.signal_over_time_figure, "curvature": plots.curvature_figure}
    if name in figures and len(table):  # a training that diverged at once measured nothing
        store.log_figure(run_id, figures[name](table), name)
