"""A job is a training to run, and a job's result is what came of it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from workbench.paths import import_folder
from workbench.training import TrainConfig, TrainResult

# Columns of a table of trainings, whatever became of them. A diverged training has neither losses nor clipping.
SETTINGS = ("arm", "model", "batch_size", "clip", "weights", "seed", "lr")
MEASURED = (
    "train_loss",
    "val_loss",
    "val_acc",
    "failed",
    "failed_at_step",
    "classes",
    "clipped_share",
    "images_per_second",
)
LINE = re.compile(r'File "(.+?)", line (\d+)')  # in a traceback


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a label and its configuration."""

    label: str
    config: TrainConfig


@dataclass(frozen=True, eq=False)
class Job:
    """A training to run. Two jobs are never equal, so results can be found by job.

    Attributes:
        arm: Label and configuration.
        role: "screen", "search" or "confirm".
        watch: Called with each history row. The training ends when it returns True.
        save: File for the final weights. The training then runs even if its result is known.
    """

    arm: Arm
    role: str
    watch: Callable[[dict], bool] | None = None
    save: str | None = None

    @property
    def name(self) -> str:
        """Name in progress reports: the training's, after the arm's unless that is the network's."""
        config = self.arm.config
        return config.name if self.arm.label == config.model else f"{self.arm.label}, {config.name}"


@dataclass(frozen=True)
class JobResult:
    """Result or error of a job.

    Attributes:
        job: The job.
        run_id: Its run in the store.
        result: Result of the training. None: it broke. A divergence is a result.
        reused: Whether the store had the result already.
        error: Why the training broke, on one line.
        details: The worker's traceback.
        unexpected: Whether the training raised an error that the user cannot correct.
    """

    job: Job
    run_id: str | None = None
    result: TrainResult | None = None
    reused: bool = False
    error: str | None = None
    details: str = ""
    unexpected: bool = False

    @property
    def broken(self) -> str:
        """Error, source line (of the user's file if possible), and where the full traceback is."""
        package = import_folder() / "workbench"
        lines = LINE.findall(self.details)
        user_lines = [
            (file, n) for file, n in lines if not Path(file).is_relative_to(package) and "site-packages" not in file
        ]
        where = (user_lines or lines)[-1:] if self.unexpected else []  # else the sentence says it
        source_line = "".join(f" ({Path(file).name}, line {n})" for file, n in where)
        traceback_hint = f"; full traceback in error.txt of run {self.run_id}" if self.run_id and self.details else ""
        return f"{str(self.error).removesuffix('.')}{source_line}{traceback_hint}"

    def row(self) -> dict:
        """Return one flat row of a tidy table: arm, configuration, final metrics, cause, device, run_id."""
        return {
            "arm": self.job.arm.label,
            **self.result.row(),
            "cause": self.result.cause,
            "device": self.result.device,
            "run_id": self.run_id,
        }


def table_of(rows: list[dict]) -> pd.DataFrame:
    """Return a tidy table of trainings, which has the same columns if all diverged or there is none.

    Args:
        rows: One `JobResult.row` per training.
    """
    table = pd.DataFrame(rows)
    columns = [*SETTINGS, *MEASURED, "outcome", "cause", "device", "run_id"]
    return table.reindex(columns=[*table, *(name for name in columns if name not in table)])
