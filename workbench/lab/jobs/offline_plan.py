"""Which trainings do studies still need? Notebooks are executed up to the first that are missing, and none is run.

So a plan says what is missing now: what a search asks for after its next trials, or a confirmation after its search,
comes with the next plan, when the results of this one are imported.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.lab.executors import Task
from workbench.lab.executors.inline import InlineExecutor
from workbench.lab.jobs.run_all import Missing
from workbench.lab.studies.launcher import Execution, notebook_environment
from workbench.lab.studies.session import PLANNING, SESSION
from workbench.training import TrainConfig
from workbench.training.detached.plan import Planned, read_plan, write_plan


def plan_trainings(
    executions: list[Execution], file: str | Path, say: Callable[[str], None] = lambda line: None
) -> list[Planned]:
    """Writes the missing trainings of these executions to `file`, and returns them.

    Raises: WorkbenchError for a notebook that broke, with its last words; the file is then not written.
    """
    trainings = []
    for execution in executions:
        if execution.action == "run":
            missing = _missing(execution)
            say(f"{execution.name}: {len(missing)} trainings")
            trainings += missing
    write_plan(file, trainings)
    return read_plan(file).trainings  # each stands in it once


def _missing(execution: Execution) -> list[Planned]:
    with tempfile.TemporaryDirectory() as scratch:
        lines = Path(scratch) / "lines"
        environment = notebook_environment() | {
            PLANNING: f"{lines}|{execution.study.name}|{execution.mode}",
            SESSION: "",
        }
        arguments = {
            "notebook": str(execution.study.notebook_file),
            "parameters": execution.parameters,
            "environment": environment,
        }
        engine = InlineExecutor()
        engine.submit(Task(execution.name, "workbench.lab.studies.notebook:notebook_unit", arguments))
        outcome = engine.wait()
        message = outcome.error or outcome.value["message"]
        if outcome.error or (outcome.value["code"] and not message.startswith(f"{Missing.__name__}:")):
            raise WorkbenchError(f"{execution.name} broke while it was planned ({message}): run it here to see why.")
        rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
        return [Planned(**{**row, "config": TrainConfig.from_dict(row["config"])}) for row in rows]
