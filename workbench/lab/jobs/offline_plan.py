"""Plan the trainings that studies still need.

Notebooks run up to their first missing trainings, and nothing trains. So a plan contains what is missing now. Later
trials of a search, and the confirmation after it, come with the next plan, after you import the results of this one.
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
    """Write the missing trainings of these executions to a file.

    Args:
        executions: The notebooks and their parameters.
        file: The plan, a .jsonl file.
        say: Called with a line per notebook.

    Returns:
        The trainings, each once.

    Raises:
        WorkbenchError: If a notebook breaks, with its error. The file is then not written.
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
        raise WorkbenchError(f"{execution.name} broke while it was planned: {end.message}. Run it here to see why.")
    return [Planned(**{**row, "config": TrainConfig.from_dict(row["config"])}) for row in rows]
