"""Trainings in the store: each is a run, and one whose key is already finished there is reused, not repeated.

This process alone writes to the store; the executor's workers train, and send what they measure.
"""

import dataclasses
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from tqdm.auto import tqdm

from workbench.errors import WorkbenchError
from workbench.lab.executors import Choice, events
from workbench.lab.jobs.job import Done, Record, Wanted
from workbench.lab.studies.session import Session
from workbench.training import TrainConfig, TrainResult, train
from workbench.training.checkpoint import Checkpoints
from workbench.training.distributed import World, joined
from workbench.training.inputs import source
from workbench.training.setup import initial_model, pick_device, steps_of

POLL = 0.5  # seconds between looks at a training that another process is at


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a label and the configuration it stands for."""

    label: str
    config: TrainConfig


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
    wanted = [Wanted(arm.config, arm.label, about=i) for i, arm in enumerate(arms)]
    rows, broken = {}, []
    with Progress("trainings", len(arms)) as progress:
        for done in trained(wanted, session, role=role, executor=executor, progress=progress):
            if done.error is not None:
                broken.append(f"{done.wanted.name}: {done.broken}")
            else:
                where = {"device": done.result.device, "run_id": done.run_id}
                rows[done.wanted.about] = {"arm": done.wanted.arm, **done.result.row(), **where}
    if broken:
        raise RuntimeError(f"{len(broken)} of {len(arms)} trainings broke, the others are kept:\n" + "\n".join(broken))
    return pd.DataFrame([rows[i] for i in sorted(rows)])


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
        self._bar = tqdm(total=total, initial=done, desc=name, unit="run", disable=total == 1 or events.listening())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def row(self, wanted: Wanted, row: dict) -> None:
        """A training got further."""
        events.emit(kind="step", name=wanted.name, step=row["step"], done=self.done, total=self.total)

    def one(self, done: Done) -> None:
        """A training ended."""
        self.done += 1
        self._bar.update()
        if done.result is not None:
            events.emit(
                kind="training",
                name=done.wanted.name,
                outcome=done.result.outcome,
                cause=done.result.cause,
                reused=done.reused,
                done=self.done,
                total=self.total,
            )


def trained(
    wanted: Iterable[Wanted],
    session: Session,
    *,
    role: str,
    executor: Choice | str | None = None,
    progress: Progress,
) -> Iterator[Done]:
    """The trainings as they end, as many at a time as the executor has room for; `wanted` is asked for the next one
    only when there is room, and everything that has ended is handed out before.

    One that another process is at is waited for, then reused. Left early, or interrupted, this stops those under way:
    they keep their last checkpoint, and their runs end KILLED.
    """
    if session.planning:
        yield from _planned(wanted, session, role)
        return
    choice = Choice.parse(executor) if isinstance(executor, str) else executor or Choice.from_environment()
    engine = choice.make()
    fresh, others, running = iter(wanted), deque(), {}

    def one(done: Done) -> Done:
        progress.one(done)
        return done

    try:
        while True:
            again = len(others)
            while engine.has_room():
                want = next(fresh, None)
                if want is None and again:
                    want, again = others.popleft(), again - 1
                if want is None:
                    break
                record = Record(want, session, role, progress.row)
                if not record.reserve():
                    others.append(want)
                elif (known := record.known()) is not None:
                    yield one(known)
                else:
                    running[record.key] = record
                    engine.submit(record.begin(here=choice.kind == "inline"))
            if running:
                outcome = engine.wait()
                yield one(running.pop(outcome.task.name).ended(outcome))
            elif others:
                time.sleep(POLL)
            else:
                return
    finally:
        engine.stop()
        for record in running.values():
            record.interrupted()


class Missing(Exception):
    """Ends a notebook that was only asked which trainings it needs, at the first that are missing."""


def _planned(wanted: Iterable[Wanted], session: Session, role: str) -> Iterator[Done]:
    missing = []
    for want in wanted:
        record = Record(want, session, role, lambda config, row: None)
        if (known := record.known()) is not None:
            yield known
        else:
            missing.append(record.planned())
    if missing:
        with open(session.plan, "a") as file:
            file.writelines(json.dumps(dataclasses.asdict(planned)) + "\n" for planned in missing)
        raise Missing(f"{len(missing)} trainings")


def run_training(
    config: TrainConfig, session: Session, *, role: str, arm: str, save: str | None = None
) -> tuple[str, TrainResult, bool]:
    """One training as a run of the store, in this process: (run id, result, whether it was reused). Under torchrun the
    first process calls this, the others `help_training`. Raises: WorkbenchError for one that broke."""
    world = World.from_environment()
    with joined(world), Progress("trainings", 1) as progress:
        (done,) = trained([Wanted(config, arm, save=save)], session, role=role, executor="inline", progress=progress)
    if done.error is not None:
        raise WorkbenchError(f"the training broke: {done.broken}.")
    return done.run_id, done.result, done.reused


def help_training(config: TrainConfig) -> None:
    """What the other processes of a torchrun do, which have no store: their part of the first one's training, if it is
    not known already."""
    world = World.from_environment()
    with joined(world):
        folder = world.agree(None)
        if folder is not None:
            train(config.replace(progress=False), checkpoints=Checkpoints(folder))
