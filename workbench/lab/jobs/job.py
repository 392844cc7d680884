"""One training on its way into the store: known already, or a run that is open while it trains and closed when it ends.

Its last words lie beside its checkpoints before the store has them, so that a store that is out of reach, or a process
that is killed between the two, loses nothing: who asks next finds them there.
"""

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import workbench
from workbench.lab.executors import Outcome, Task, events
from workbench.lab.store import retention
from workbench.lab.store.client import UNREACHABLE, Store
from workbench.lab.store.locations import runs_folder
from workbench.lab.studies.session import Session
from workbench.training import TrainConfig, TrainResult, planned, training_key, worker_task
from workbench.training.detached.plan import Planned
from workbench.training.distributed import World
from workbench.training.inputs import source_digest

FLUSH_EVERY = 5.0  # seconds between writes of rows
LINE = re.compile(r'File "(.+?)", line (\d+)')  # of a traceback
PACKAGE = Path(workbench.__file__).parent


def checkpoints_folder(mode: str, key: str) -> Path:
    """Where the checkpoints of the training with this key lie."""
    return runs_folder() / "checkpoints" / f"{mode}-{key[:32]}"


@dataclass(frozen=True)
class Wanted:
    """A training that is asked for. `watch` sees every history row and may end it; `save` is where its weights go, and
    has it run even where its result is known; `about` is the asker's own."""

    config: TrainConfig
    arm: str
    watch: Callable[[dict], bool] | None = None
    save: str | None = None
    about: object = None

    @property
    def name(self) -> str:
        """What progress calls it: the arm, where that is not the network's name, and the training's name."""
        return self.config.name if self.arm == self.config.model else f"{self.arm}, {self.config.name}"


@dataclass(frozen=True)
class Done:
    """What came of it: the run and the result, or in `error` why it broke (that it diverged is a result), with the
    worker's traceback in `details`."""

    wanted: Wanted
    run_id: str | None = None
    result: TrainResult | None = None
    reused: bool = False
    error: str | None = None
    details: str = ""

    @property
    def broken(self) -> str:
        """The error with the line that it came from, the user's own where one is in it, and where all of it is."""
        lines = LINE.findall(self.details)
        user_frames = [
            (file, n) for file, n in lines if not Path(file).is_relative_to(PACKAGE) and "site-packages" not in file
        ]
        where = "".join(f" ({Path(file).name}, line {n})" for file, n in (user_frames or lines)[-1:])
        kept = f"; run {self.run_id} holds the whole of it, error.txt" if self.run_id and self.details else ""
        return f"{self.error}{where}{kept}"


class Record:
    """From `reserve` to `ended`, in this order: reserve, known, begin, ended; or `interrupted`."""

    def __init__(self, wanted: Wanted, session: Session, role: str, on_row: Callable[[Wanted, dict], None]):
        config = planned(wanted.config)
        self.wanted = dataclasses.replace(wanted, config=config)
        self._session, self._role, self._on_row = session, role, on_row
        self.key = training_key(config, source_digest(config))
        self.folder = checkpoints_folder(session.mode, self.key)
        self._lock = session.store.lock(f"{session.mode}-{self.key}")
        self._run: str | None = None
        self._rows: list[dict] = []
        self._seen = 0  # the step of the last row
        self._flushed = time.monotonic()

    def reserve(self) -> bool:
        """Takes the training; False where another process is at it, or an equal one is under way here."""
        return self._session.store.reserve(self._lock)

    def known(self) -> Done | None:
        """The finished training with this key, if the store has it."""
        stored = None
        if self.wanted.save is None:
            stored = self._session.store.find_training(self.key, self._session.mode)
        World.from_environment().agree(None if stored is not None else str(self.folder))
        if stored is None:
            return None
        self._lock.release()
        return self._done(*stored, reused=True)

    def planned(self) -> Planned:
        """The training as a line of a plan."""
        session = self._session
        return Planned.of(
            self.wanted.config, study=session.study, mode=session.mode, role=self._role, arm=self.wanted.arm
        )

    def begin(self, *, here: bool) -> Task:
        """Opens the run, and returns the task that trains; `here` is this process, with its terminal and its GPUs."""
        retention.diverged_bytes()  # refuse it now, not when the training is over
        config, session = self.wanted.config, self._session
        self._run = session.store.open_training(
            config, self.key, session.mode, role=self._role, arm=self.wanted.arm, owner=session.run_id
        )
        alone = here and not events.listening()
        device = config.device if here else config.device.split(":")[0]  # a worker sees one GPU, the first
        arguments = {
            "config": config.replace(progress=config.progress and alone, device=device).to_dict(),
            "folder": str(self.folder),
            "save": self.wanted.save,
        }
        return Task(self.key, f"{worker_task.__name__}:{worker_task.train_unit.__name__}", arguments, self._hear)

    def ended(self, outcome: Outcome) -> Done:
        """Puts what came of it into the store."""
        if outcome.error is not None:
            stopped = outcome.error == "stopped"
            self._close("KILLED" if stopped or outcome.died else "FAILED", outcome.error, outcome.details)
            return Done(self.wanted, self._run, error=outcome.error, details=outcome.details)
        result = dataclasses.replace(TrainResult.from_json(outcome.value), config=self.wanted.config)
        try:
            self._flush()
            self._session.store.finish_training(self._run, result)
        except UNREACHABLE as error:
            self._lock.release()
            lost = (
                f"the store is out of reach ({str(error).splitlines()[0]}); the result is kept, start again to log it"
            )
            return Done(self.wanted, self._run, error=lost)
        retention.settle(self.folder, diverged=result.outcome == "diverged")
        self._lock.release()
        return self._done(self._run, result, reused=False)

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
            self._on_row(self.wanted, row)
            return bool(self.wanted.watch and self.wanted.watch(row))
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

    def _done(self, run_id: str, result: TrainResult, *, reused: bool) -> Done:
        if self._session.run_id is not None:
            self._session.store.tag_study(run_id, self._session.study, self._session.run_id)
        return Done(self.wanted, run_id, result, reused)


def log_measured(store: Store, run_id: str, name: str, table: pd.DataFrame) -> None:
    """What a training measured of itself (agc, signal, curvature): the table, and its figure where it has one."""
    from workbench.lab import plots

    store.log_table(run_id, table, name)
    figures = {"signal": plots.signal_over_time_figure, "curvature": plots.curvature_figure}
    if name in figures:
        store.log_figure(run_id, figures[name](table), name)
