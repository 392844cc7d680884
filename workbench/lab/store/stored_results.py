"""Results of trainings as the store keeps them, checked before anything uses them.

A file of a run comes from outside: a full disk, a crash or a copy may have damaged it.
"""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import parquet
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from workbench.bounded_json import parse
from workbench.errors import WorkbenchError, shown
from workbench.lab.store.runs import Run
from workbench.outcomes import CLASSES, FAILURES, FINISHED, at_end

if TYPE_CHECKING:  # torch takes as long to import as MLflow, and readers of the store do not need it
    from workbench.training import TrainResult

RESULT = "result.json"


class DamagedResult(WorkbenchError):
    """Error for a result that cannot be read."""


class StoredResult(BaseModel):
    """The content of `result.json`; see `TrainResult`, whose fields have the same names."""

    model_config = ConfigDict(strict=True)

    key: str
    config: dict[str, Any]
    outcome: str
    history: list[dict[str, int | float | bool | None]]
    metrics: dict[str, int | float | bool | None]
    cause: str | None = None
    seconds: float = 0.0
    device: str = ""
    versions: dict[str, str] = {}
    data_digest: str = ""
    code: str = ""
    layout: str = ""

    @field_validator("history")
    @classmethod
    def _has_steps(cls, rows: list[dict]) -> list[dict]:
        if not all(isinstance(row.get("step"), int) for row in rows):
            raise ValueError("a row has no step")
        return rows

    def as_train_result(self) -> "TrainResult":
        """Return the result as the training returned it.

        Raises:
            WorkbenchError: For a configuration that this version does not allow.
        """
        from workbench.training import TrainConfig, TrainResult

        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(TrainResult)}
        return TrainResult(**values | {"config": TrainConfig.from_dict(self.config)})


def parse_result(text: str | bytes, run_id: str) -> StoredResult:
    """Read the text of a run's `result.json`.

    Its outcome is judged again, so that trainings of older versions follow the same rule.

    Raises:
        DamagedResult: If it is not a result.
    """
    try:
        content = text.decode() if isinstance(text, bytes) else text
        plain = parse(content, finite=False)  # a loss that diverged may be infinite
        return _judged(StoredResult.model_validate(plain))
    except ValidationError as error:
        first = error.errors()[0]
        cause = f"{'.'.join(map(str, first['loc'])) or 'its content'}: {first['msg'].lower()}"
    except ValueError as error:  # not text, or no bounded JSON
        cause = str(error) if text else "it is empty"
    raise DamagedResult(
        f"{RESULT} of run {run_id} is damaged ({shown(cause, 150, quote=False)}). "
        "Run `./run doctor --fix` to set the run aside, then train again."
    )


def _judged(result: StoredResult) -> StoredResult:
    """Judge the end of a training by the rule of workbench.outcomes, as far as its classes are known."""
    if result.outcome not in FINISHED or not result.history:
        return result
    classes, val_loss = result.metrics.get("classes"), result.history[-1].get("val_loss")
    classes = classes or CLASSES.get(str(result.config.get("data")))
    if classes is None or not math.isfinite(classes) or not isinstance(val_loss, float | int):
        return result
    outcome, cause = at_end(val_loss, int(classes))
    metrics = {**result.metrics, "failed": int(outcome in FAILURES), "classes": classes}
    return result.model_copy(update={"outcome": outcome, "cause": cause, "metrics": metrics})


def examined(experiment: str, run: Run, folder: Path) -> tuple[StoredResult | None, str | None]:
    """Read the files that the store needs to reuse a run.

    Args:
        experiment: Its experiment.
        run: The run.
        folder: Where its files are now, whatever the database says.

    Returns:
        The result of a training, and the damage. No result: it cannot be read, or the run is no training. No damage:
        the files are whole, behind a server, or not needed.
    """
    if not run.files_uri.startswith(("file:", "/")):  # on a server
        return None, None
    result, damage = None, None
    needed = folder / (RESULT if experiment.startswith("trainings") else "environment.txt")
    try:
        if not needed.is_file():
            damage = "its files are gone"
        elif needed.name == RESULT:
            result = parse_result(needed.read_bytes(), run.id)
    except (OSError, WorkbenchError) as error:
        damage = str(error).partition(". ")[0]
    broken = (f"{table.name} is damaged" for table in folder.glob("tables/*.parquet") if not _is_parquet(table))
    return result, (damage or next(broken, None)) if "key" in run.tags else None  # without one: not a launcher's


def _is_parquet(file: Path) -> bool:
    """Return whether a file has the layout of Parquet. Its values are not read."""
    try:
        parquet.read_metadata(file)
    except (OSError, pa.ArrowException):
        return False
    return True
