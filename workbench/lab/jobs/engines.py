"""What becomes of the jobs of a notebook: they are trained, or written into a plan."""

import dataclasses
import json
from typing import Protocol

from workbench.lab.executors import Choice, context
from workbench.lab.jobs.job import JobResult
from workbench.lab.jobs.job_run import JobRun


class Engine(Protocol):
    """Takes the jobs that the store does not know yet."""

    def has_room(self) -> bool:
        """Whether a job that is submitted now would start now."""

    def reserve(self, run: JobRun) -> bool:
        """Takes a job for this process; False where another process is at it."""

    def submit(self, run: JobRun) -> None:
        """Takes a job that is reserved and not known."""

    def is_busy(self) -> bool:
        """Whether there is anything to wait for."""

    def wait(self) -> JobResult:
        """The next result."""

    def stop(self) -> None:
        """Stops what is under way: it keeps its last checkpoint, and its run ends KILLED."""


class TrainingEngine:
    """Trains jobs on an executor, each as a run of the store."""

    def __init__(self, choice: Choice):
        self._here, self._executor = choice.kind == "inline", choice.make()
        self._running: dict[str, JobRun] = {}

    def has_room(self) -> bool:
        return self._executor.has_room()

    def reserve(self, run: JobRun) -> bool:
        return run.reserve()

    def submit(self, run: JobRun) -> None:
        self._running[run.key] = run
        self._executor.submit(run.begin(here=self._here))

    def is_busy(self) -> bool:
        return bool(self._running)

    def wait(self) -> JobResult:
        outcome = self._executor.wait()
        return self._running.pop(outcome.task.name).ended(outcome)

    def stop(self) -> None:
        self._executor.stop()
        for run in self._running.values():
            run.interrupted()


class PlanIsWritten(Exception):
    """Ends a notebook that is only asked which trainings it needs, at the first that are missing."""


class PlanEngine:
    """Writes jobs into the file that the launcher reads, one JSON object per line, and trains none of them."""

    def __init__(self, file):
        self._file, self._written = file, 0

    def has_room(self) -> bool:
        return True

    def reserve(self, run: JobRun) -> bool:
        return True  # nothing is trained here

    def submit(self, run: JobRun) -> None:
        self._written += 1
        with open(self._file, "a") as file:
            file.write(json.dumps(dataclasses.asdict(run.planned())) + "\n")

    def is_busy(self) -> bool:
        return self._written > 0

    def wait(self) -> JobResult:
        raise PlanIsWritten(f"{self._written} trainings are missing")

    def stop(self) -> None:
        """Nothing is under way."""


def is_planning() -> bool:
    """Whether this notebook is only asked which trainings it needs."""
    here = context.current()
    return here is not None and here.plan is not None


def engine_for(executor: Choice | str | None) -> Engine:
    """The engine of this process: for a plan where one is asked for, else on this executor.

    Args:
        executor: Such as "processes:4". None: what the launcher or WORKBENCH_EXECUTOR says.
    """
    if is_planning():
        return PlanEngine(context.current().plan)
    choice = Choice.parse(executor) if isinstance(executor, str) else executor or Choice.from_environment()
    return TrainingEngine(choice)
