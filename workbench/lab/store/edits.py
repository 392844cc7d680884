"""What somebody changed in MLflow about a training that has ended, against the result in its files.

MLflow's pages can change tags, metrics and the status of any run. The file `result.json` has what the training found.
"""

import math
import re
from dataclasses import dataclass

from workbench.errors import WorkbenchError
from workbench.lab.store.runs import Run
from workbench.lab.store.stored_results import StoredResult
from workbench.outcomes import PRUNED, RESULTS

IS_HASH = re.compile(r"[0-9a-f]{8,64}")
KEPT_OUTCOMES = (*RESULTS, PRUNED)


@dataclass(frozen=True)
class Edits:
    """Differences between a run and its result.

    Attributes:
        tags: By name the right values of the tags that differ.
        metrics: By name the right values of the metrics that differ.
        status: The status that the run has, if it is not FINISHED.
        step: The last step of the training.
    """

    tags: dict[str, str]
    metrics: dict[str, float]
    status: str | None
    step: int

    def __str__(self) -> str:
        parts = [f"the tag {name}" for name in self.tags] + [f"the metric {name}" for name in self.metrics]
        return ", ".join(([f"the status {self.status}"] if self.status else []) + parts)


def edits_of(experiment: str, run: Run, result: StoredResult) -> Edits | None:
    """Compare a training that no process writes with its result.

    Args:
        experiment: Its experiment.
        run: The run.
        result: What its files say.

    Returns:
        The differences. None: there are none, or the training broke.
    """
    if result.outcome not in KEPT_OUTCOMES:
        return None
    tags = {name: value for name, value in _tags(experiment, result).items() if run.tags.get(name) != value}
    if not IS_HASH.fullmatch(run.tags.get("config_id", "")):
        tags |= _config_id(result)
    metrics = {
        name: float(value)
        for name, value in result.metrics.items()
        if value is not None and math.isfinite(value) and name in run.metrics and run.metrics[name] != value
    }
    status = run.status if run.status != "FINISHED" else None
    steps = result.metrics.get("steps_done") or 0
    return Edits(tags, metrics, status, int(steps)) if tags or metrics or status else None


def _tags(experiment: str, result: StoredResult) -> dict[str, str]:
    mode = "quick" if experiment.endswith("-quick") else "full"
    tags = {"key": result.key, "outcome": result.outcome, "code": result.code, "data": result.data_digest}
    return {name: value for name, value in (tags | {"mode": mode}).items() if value}


def _config_id(result: StoredResult) -> dict[str, str]:
    from workbench.training import config_id  # takes as long to import as MLflow

    try:
        return {"config_id": config_id(result.as_train_result().config)}
    except WorkbenchError:  # of another version, or the file of a user's network is gone
        return {}
