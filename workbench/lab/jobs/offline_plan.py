"""Which trainings do studies still need? Notebooks run up to the first that are missing, and nothing is trained.

So a plan holds what is missing now. What a search asks for after its next trials, or a confirmation after its search,
comes with the next plan, once the results of this one are imported.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.lab.executors import Choice
from workbench.lab.studies.executions import Execution
from workbench.lab.studies.launcher import LOOK_EVERY, start_notebook
from workbench.training import TrainConfig
from workbench.training.detached.plan import Planned, read_plan, write_plan


def plan_trainings(
    executions: list[Execution], file: str | Path, say: Callable[[str], None] = lambda line: None
) -> list[Planned]:
    """Write the missing trainings of these executions to `file`, and return them, each once.

    Raises:
        WorkbenchError: If a notebook broke, with its error; the file is then not written.
    """
    trainings = []
    for execution in executions:
        if execution.action == "run":
            missing = _missing(execution)
            say(f"{execution.name}: {len(missing)} trainings")
            trainings += missing
    write_plan(file, trainings)
    return read_plan(file).trainings


def _missing(execution: Execution) -> list[Planned]:
    with tempfile.TemporaryDirectory() as scratch:
        lines = Path(scratch) / "trainings.jsonl"
        process = start_notebook(execution, None, Choice(), plan_file=lines)
        try:
            while not process.has_ended():
                process.messages()
                time.sleep(LOOK_EVERY)
        except BaseException:
            process.stop()
            raise
        end = process.end()
        rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    if end.status != "FINISHED" and not rows:  # a notebook with missing trainings ends at them, with an error
        raise WorkbenchError(f"{execution.name} broke while it was planned ({end.message}): run it here to see why.")
    return [Planned(**{**row, "config": TrainConfig.from_dict(row["config"])}) for row in rows]
