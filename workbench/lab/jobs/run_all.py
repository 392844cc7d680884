"""Trainings in the store, each a run.

A training whose key is finished in the store is reused, not repeated. Only this process writes to the store. The
executor's workers train, and send what they measure.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator

import pandas as pd
import torch
from torch import nn

from workbench.bars import bar
from workbench.errors import WorkbenchError
from workbench.lab.executors import Choice, channel
from workbench.lab.jobs.engines import engine_for
from workbench.lab.jobs.job import Arm, Job, JobResult, table_of
from workbench.lab.jobs.job_run import JobRun
from workbench.lab.studies.session import Session
from workbench.training import TrainConfig, TrainResult, train
from workbench.training.checkpoint import Checkpoints
from workbench.training.distributed import World, joined
from workbench.training.first_batch import check_networks
from workbench.training.inputs import source
from workbench.training.setup import initial_model, pick_device, steps_of

POLL = 0.5  # seconds between looks at a training that another process runs
LOUD = 4  # looks before a line says for whom this waits


def run_all(
    arms: Iterable[Arm | TrainConfig],
    session: Session,
    *,
    role: str = "screen",
    executor: Choice | str | None = None,
) -> pd.DataFrame:
    """Train every configuration, or take its result from the store.

    All configurations are checked before the first training starts. A training that breaks does not stop the others.

    Args:
        arms: Arms or configurations. A configuration without an arm has its model's name as label.
        session: Where the trainings run and are kept.
        role: "screen", "search" or "confirm".
        executor: Such as "processes:4". None: WORKBENCH_EXECUTOR, else this process.

    Returns:
        One row per training, in order: arm, configuration, final metrics, device, run_id.

    Raises:
        WorkbenchError: If `train` would refuse a configuration.
        RuntimeError: If trainings broke, after the others are done and kept. A divergence is a result.
    """
    arms = [arm if isinstance(arm, Arm) else Arm(arm.model, arm) for arm in arms]
    for arm in arms:
        check(arm.config)
    check_networks(arm.config for arm in arms)
    jobs = [Job(arm, role) for arm in arms]
    with Progress("trainings", len(jobs)) as progress:
        results = {result.job: result for result in trained(jobs, session, executor=executor, progress=progress)}
    ordered = [results[job] for job in jobs]
    broken = [f"{result.job.name}: {result.broken}" for result in ordered if result.error is not None]
    if broken:
        raise RuntimeError(f"{len(broken)} of {len(arms)} trainings broke. The others are kept:\n" + "\n".join(broken))
    return table_of([result.row() for result in ordered])


def check(config: TrainConfig) -> nn.Module:
    """Raise before anything runs what `train` would raise for this configuration.

    Returns:
        The network, on the meta device unless the configuration has initial weights.
    """
    data = source(config)
    pick_device(config.device)
    steps_of(config, len(data.train))
    device = "cpu" if config.weights is not None else "meta"  # without weights only the arguments need a check
    with torch.random.fork_rng(devices=[]), torch.device(device):
        return initial_model(config, data)


class Progress:
    """Counts trainings: a bar unless the launcher shows one, and messages to the launcher.

    Args:
        name: Name of the bar.
        total: Number of trainings.
        done: Number of trainings that are done.
    """

    def __init__(self, name: str, total: int, done: int = 0):
        self.total, self.done = total, done
        shown = total > 1 and not channel.has_listener()
        self._bar = bar(total, done=done, desc=name, unit="run", shown=shown, leave=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def row(self, job: Job, row: dict) -> None:
        """Report a history row of a training."""
        self._bar.set_postfix_str(f"{job.name}, step {row['step']}, loss {row['train_loss']:.3f}", refresh=False)
        self._bar.refresh()
        at = {"step": row["step"], "loss": row["train_loss"], "done": self.done, "total": self.total}
        channel.send(kind="step", name=job.name, **at)

    def one(self, result: JobResult) -> JobResult:
        """Count a training that ended, and return its result."""
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
    """Train jobs as far as the executor has room, and yield their results as they end.

    The next job is drawn only when there is room, after all results so far are yielded. A training that another process
    runs is waited for, then reused. If the generator is closed or interrupted, the running trainings stop: they keep
    their last checkpoints, and their runs end KILLED.

    Args:
        jobs: The trainings.
        session: Where the trainings run and are kept.
        executor: Such as "processes:4". None: WORKBENCH_EXECUTOR, else this process.
        progress: Counts the trainings.
    """
    engine = engine_for(executor)
    fresh, elsewhere, waits = iter(jobs), deque(), 0
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
                    blocked = run
                elif (known := run.known()) is not None:
                    yield progress.one(known)
                else:
                    engine.submit(run)
            if engine.is_busy():
                yield progress.one(engine.wait())
            elif elsewhere:
                if waits == LOUD:
                    channel.announce(f"waits for {blocked.job.name}: {blocked.holder()} runs it")
                waits += 1
                time.sleep(POLL)
            else:
                return
    finally:
        engine.stop()


def run_training(
    config: TrainConfig, session: Session, *, role: str, arm: str, save: str | None = None
) -> tuple[str, TrainResult, bool]:
    """Run one training in this process, as a run of the store.

    Under torchrun the first process calls this, and the others call `help_training`.

    Args:
        config: The training.
        session: Where it is kept.
        role: "screen", "search" or "confirm".
        arm: Label.
        save: File for the final weights. The training then runs even if its result is known.

    Returns:
        Run id, result, and whether the store had the result already.

    Raises:
        WorkbenchError: If the training breaks, with a cause that the user can correct.
        RuntimeError: If it breaks otherwise. The worker's traceback is the cause.
    """
    world = World.from_environment()
    with joined(world), Progress("trainings", 1) as progress:
        job = Job(Arm(arm, config), role, save=save)
        (result,) = trained([job], session, executor="inline", progress=progress)
    if result.unexpected:
        raise RuntimeError(f"the training broke: {result.broken}") from RuntimeError(result.details)
    if result.error is not None:
        raise WorkbenchError(f"the training broke: {result.broken}.")
    return result.run_id, result.result, result.reused


def help_training(config: TrainConfig) -> None:
    """Do this process's part of a torchrun training, unless its result is known.

    All processes but the first call it. They have no store.
    """
    world = World.from_environment()
    with joined(world):
        folder = world.agree(None)
        if folder is not None:
            train(config.replace(progress=False), checkpoints=Checkpoints(folder))
