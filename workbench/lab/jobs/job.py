"""A training on its way: a job goes in, a job's result comes out."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workbench.paths import import_folder
from workbench.training import TrainConfig, TrainResult

LINE = re.compile(r'File "(.+?)", line (\d+)')  # of a traceback


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a label and the configuration it stands for."""

    label: str
    config: TrainConfig


@dataclass(frozen=True, eq=False)
class Job:
    """A training that is asked for. Two jobs are never equal, so that each finds its own result.

    Attributes:
        role: "screen", "search" or "confirm".
        watch: Sees every history row, and ends the training where it returns True.
        save: Where the final weights go; the training then runs even if its result is known.
    """

    arm: Arm
    role: str
    watch: Callable[[dict], bool] | None = None
    save: str | None = None

    @property
    def name(self) -> str:
        """What progress calls it: the arm, unless that is the network's name, and the training's name."""
        config = self.arm.config
        return config.name if self.arm.label == config.model else f"{self.arm.label}, {config.name}"


@dataclass(frozen=True)
class JobResult:
    """What came of a job.

    Attributes:
        run_id: Its run of the store.
        result: None where the training broke. A divergence is a result.
        reused: Whether the store had the result already.
        error: Why it broke, on one line.
        details: The worker's traceback.
    """

    job: Job
    run_id: str | None = None
    result: TrainResult | None = None
    reused: bool = False
    error: str | None = None
    details: str = ""

    @property
    def broken(self) -> str:
        """The error, its source line (of the user's file if there is one), and where to find the whole traceback."""
        package = import_folder() / "workbench"
        lines = LINE.findall(self.details)
        of_users = [
            (file, n) for file, n in lines if not Path(file).is_relative_to(package) and "site-packages" not in file
        ]
        where = "".join(f" ({Path(file).name}, line {n})" for file, n in (of_users or lines)[-1:])
        kept = f"; run {self.run_id} holds the whole of it, error.txt" if self.run_id and self.details else ""
        return f"{self.error}{where}{kept}"

    def row(self) -> dict:
        """One flat row of a tidy table: arm, configuration, final metrics, device, run_id."""
        return {
            "arm": self.job.arm.label,
            **self.result.row(),
            "device": self.result.device,
            "run_id": self.run_id,
        }
