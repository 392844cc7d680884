"""Engines take the jobs of a notebook: they train them, or write them into a plan."""

import dataclasses
import json
from typing import Protocol

from workbench.lab.executors import Choice, context
from workbench.lab.jobs.job import JobResult
from workbench.lab.jobs.job_run import JobRun


class Engine(Protocol):
    """Takes the jobs that the store does not know yet."""

    def has_room(self) -> bool:
        """Say whether a job that you submit now would start now."""

    def reserve(self, run: JobRun) -> bool:
        """Take a job for this process. False: another process works on it."""

    def submit(self, run: JobRun) -> None:
        """Take a job that is reserved and has no result yet."""

    def is_busy(self) -> bool:
        """Say whether there is anything to wait for."""

    def wait(self) -> JobResult:
        """Wait for the next result and return it."""

    def stop(self) -> None:
        """Stop the running trainings. They keep their last checkpoints, and their runs end KILLED."""


class TrainingEngine:
    """Trains jobs on an executor, each as a run of the store; see `Engine`."""

    def __init__(self, choice: Choice):
        self._here, self._executor = choice.kind == "inline", choice.make()
        self._running: dict[str, JobRun] = {}

    def has_room(self) -> bool:
        """Say whether the executor has room."""
        return self._executor.has_room()

    def reserve(self, run: JobRun) -> bool:
        """Take the lock of the training. False: another process has it."""
        return run.reserve()

    def submit(self, run: JobRun) -> None:
        """Open the run and hand its training to the executor."""
        self._running[run.key] = run
        self._executor.submit(run.begin(here=self._here))

    def is_busy(self) -> bool:
        """Say whether a training runs."""
        return bool(self._running)

    def wait(self) -> JobResult:
        """Wait for the next training to end, put it into the store and return its result."""
        outcome = self._executor.wait()
        return self._running.pop(outcome.task.name).ended(outcome)

    def stop(self) -> None:
        """Stop the executor and close the runs as KILLED."""
        self._executor.stop()
        for run in self._running.values():
            run.interrupted()


class PlanIsWritten(Exception):
    """Ends a notebook that is only planned, at the first missing trainings."""


class PlanEngine:
    """Writes jobs into a plan and trains none; see `Engine`.

    Args:
        file: The plan, which the launcher reads. Each job adds one JSON object on a line.
    """

    def __init__(self, file):
        self._file, self._written = file, 0

    def has_room(self) -> bool:
        """Return True: a plan takes any number of jobs."""
        return True

    def reserve(self, run: JobRun) -> bool:
        """Return True: nothing is trained, so no lock is needed."""
        return True

    def submit(self, run: JobRun) -> None:
        """Append the training to the plan."""
        self._written += 1
        with open(self._file, "a") as file:
            file.write(json.dumps(dataclasses.asdict(run.planned())) + "\n")

    def is_busy(self) -> bool:
        """Say whether a training was written."""
        return self._written > 0

    def wait(self) -> JobResult:
        """Raise PlanIsWritten, which ends the notebook."""
        raise PlanIsWritten(f"{self._written} trainings are missing")

    def stop(self) -> None:
        """Do nothing: no training runs."""


def is_planning() -> bool:
    """Say whether this notebook is only planned: it lists the trainings that it needs."""
    launched = context.current()
    return launched is not None and launched.plan is not None


def engine_for(executor: Choice | str | None) -> Engine:
    """Return a plan engine if the notebook is only planned, else a training engine.

    Args:
        executor: Such as "processes:4". None: the launcher's choice, or WORKBENCH_EXECUTOR.
    """
    if is_planning():
        return PlanEngine(context.current().plan)
    choice = Choice.parse(executor) if isinstance(executor, str) else executor or Choice.from_environment()
    return TrainingEngine(choice)
