"""Trainings in the store: each is a run, and one whose key is already finished there is reused, not repeated.

This process alone writes to the store; the executor's workers train, and send what they measure.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator

import pandas as pd
import torch
from tqdm.auto import tqdm

from workbench.errors import WorkbenchError
from workbench.lab.executors import Choice, channel
from workbench.lab.jobs.engines import engine_for
from workbench.lab.jobs.job import Arm, Job, JobResult
from workbench.lab.jobs.job_run import JobRun
from workbench.lab.studies.session import Session
from workbench.training import TrainConfig, TrainResult, train
from workbench.training.checkpoint import Checkpoints
from workbench.training.distributed import World, joined
from workbench.training.inputs import source
from workbench.training.setup import initial_model, pick_device, steps_of

POLL = 0.5  # seconds between looks at a training that another process is at


def run_all(
    arms: Iterable[Arm | TrainConfig],
    session: Session,
    *,
    role: str = "screen",
    executor: Choice | str | None = None,
) -> pd.DataFrame:
    """Trains every configuration, or takes it from the store, and returns one row each, in order: arm, configuration,
    final metrics, run_id.

    Args: `executor` says where they run, e.g. "processes:4"; None: as WORKBENCH_EXECUTOR says, else here.
    All are checked before the first starts. A training that breaks (not: diverges) does not stop the others; it is
    reported at the end, as an error, when they are done and kept.
    """
    arms = [arm if isinstance(arm, Arm) else Arm(arm.model, arm) for arm in arms]
    for arm in arms:
        check(arm.config)
    jobs = [Job(arm, role) for arm in arms]
    with Progress("trainings", len(jobs)) as progress:
        results = {result.job: result for result in trained(jobs, session, executor=executor, progress=progress)}
    ordered = [results[job] for job in jobs]
    broken = [f"{result.job.name}: {result.broken}" for result in ordered if result.error is not None]
    if broken:
        raise RuntimeError(f"{len(broken)} of {len(arms)} trainings broke, the others are kept:\n" + "\n".join(broken))
    return pd.DataFrame([result.row() for result in ordered])


def check(config: TrainConfig) -> None:
    """Refuses, before anything runs, what `train` would refuse."""
    data = source(config)
    pick_device(config.device)
    steps_of(config, len(data.train))
    device = "cpu" if config.weights is not None else "meta"  # without weights only its arguments are in question
    with torch.random.fork_rng(devices=[]), torch.device(device):
        initial_model(config, data)


class Progress:
    """How many are done: a bar where nobody else shows it, and events for the launcher."""

    def __init__(self, name: str, total: int, done: int = 0):
        self.total, self.done = total, done
        self._bar = tqdm(total=total, initial=done, desc=name, unit="run", disable=total == 1 or channel.has_listener())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def row(self, job: Job, row: dict) -> None:
        """A training got further."""
        channel.send(kind="step", name=job.name, step=row["step"], done=self.done, total=self.total)

    def one(self, result: JobResult) -> JobResult:
        """A training ended; returns its result."""
        self.done += 1
        self._bar.update()
        if result.result is not None:
            channel.send(
                kind="training",
                name=result.job.name,
                outcome=result.result.outcome,
                cause=result.result.cause,
                reused=result.reused,
                done=self.done,
                total=self.total,
            )
        return result


def trained(
    jobs: Iterable[Job],
    session: Session,
    *,
    executor: Choice | str | None = None,
    progress: Progress,
) -> Iterator[JobResult]:
    """Yield the results as the trainings end, as many trainings at a time as the executor has room for.

    `jobs` is asked for the next one only when there is room, and everything that has ended is handed out before. A
    training that another process is at is waited for, then reused. Left early, or interrupted, this stops those under
    way: they keep their last checkpoint, and their runs end KILLED.
    """
    engine = engine_for(executor)
    fresh, elsewhere = iter(jobs), deque()
    try:
        while True:
            again = len(elsewhere)
            while engine.has_room():
                job = next(fresh, None)
                if job is None and again:
                    job, again = elsewhere.popleft(), again - 1
                if job is None:
                    break
                run = JobRun(job, session, progress.row)
                if not engine.reserve(run):
                    elsewhere.append(job)
                elif (known := run.known()) is not None:
                    yield progress.one(known)
                else:
                    engine.submit(run)
            if engine.is_busy():
                yield progress.one(engine.wait())
            elif elsewhere:
                time.sleep(POLL)
            else:
                return
    finally:
        engine.stop()


def run_training(
    config: TrainConfig, session: Session, *, role: str, arm: str, save: str | None = None
) -> tuple[str, TrainResult, bool]:
    """One training as a run of the store, in this process: (run id, result, whether it was reused). Under torchrun the
    first process calls this, the others `help_training`. Raises: WorkbenchError for one that broke."""
    world = World.from_environment()
    with joined(world), Progress("trainings", 1) as progress:
        job = Job(Arm(arm, config), role, save=save)
        (result,) = trained([job], session, executor="inline", progress=progress)
    if result.error is not None:
        raise WorkbenchError(f"the training broke: {result.broken}.")
    return result.run_id, result.result, result.reused


def help_training(config: TrainConfig) -> None:
    """What the other processes of a torchrun do, which have no store: their part of the first one's training, if it is
    not known already."""
    world = World.from_environment()
    with joined(world):
        folder = world.agree(None)
        if folder is not None:
            train(config.replace(progress=False), checkpoints=Checkpoints(folder))
