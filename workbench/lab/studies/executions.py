"""The executions of studies: what must run, what the store already has, and why."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.data import canonical_name, dataset_digest
from workbench.errors import unknown
from workbench.files import sha256
from workbench.lab.executors.lifetime import is_alive
from workbench.lab.store.client import Store
from workbench.lab.store.runs import Run
from workbench.lab.studies.parameters import code_cells
from workbench.lab.studies.spec import Study
from workbench.networks import builder_hash, located, source_of
from workbench.paths import import_folder
from workbench.source import files_hash, source_hash
from workbench.training import code_hash
from workbench.training.setup import pick_device
from workbench.weights.released import is_cached

RERUN = ("failed", "stale", "all")


NETWORKS = {"model", "model_bn"}  # parameters that name one


MEASURES = {  # what a study measures without training: covered where its notebook or its claim imports it
    "probes": "workbench.probes",
    "training/step_time.py": "workbench.training.step_time",
}
CLAIMS = import_folder() / "workbench" / "claims"
PARTS = ("notebook", "parameters", "code", "claim", "statistics", "data")  # of what names an execution


@dataclass
class Execution:
    """One notebook execution of the plan. `state` is what the store knows of it: new, finished, running, failed,
    interrupted or stale; `why` says more. `action` is run, reuse (the finished `run`) or leave."""

    study: Study
    parameters: dict[str, Any]
    mode: str
    key: dict[str, str]
    name: str
    state: str = "new"
    why: str = ""
    action: str = "run"
    run: str | None = None
    seconds: float | None = None  # estimated

    @property
    def reuse(self) -> str | None:
        """The finished run that answers it already."""
        return self.run if self.action == "reuse" else None


def plan(
    studies: Iterable[Study],
    store: Store,
    *,
    quick: bool,
    overrides: dict[str, str] | None = None,
    rerun: str | None = None,
) -> list[Execution]:
    """Every execution of the studies, in order: what runs, what is reused and why, and how long it may take.

    Whatever is not finished with today's notebook, parameters, code and data runs. `rerun` is "failed" or "stale" for
    those alone, or "all" for everything, finished or not.
    """
    if rerun is not None and rerun not in RERUN:
        raise unknown("choice for --rerun", rerun, RERUN)
    mode = "quick" if quick else "full"
    planned = []
    for study in studies:
        executions = study.executions(quick=quick, overrides=overrides)
        runs = store.search("studies", mode, f"tags.study = '{study.name}'")
        for parameters in executions:
            parameters = _located(parameters)
            label = " ".join(f"{k}={parameters[k]}" for k in study.matrix) if len(executions) > 1 else ""
            execution = Execution(
                study, parameters, mode, execution_key(study, parameters), f"{study.name} {label}".strip()
            )
            _compare(execution, runs)
            answered = ("finished", "running")
            wanted = execution.state not in answered if rerun is None else rerun in ("all", execution.state)
            execution.action = "run" if wanted else "reuse" if execution.state == "finished" else "leave"
            execution.seconds = _estimate(execution, runs) if wanted else 0.0
            planned.append(execution)
    return planned


def _located(parameters: dict[str, Any]) -> dict[str, Any]:
    """The same with names that mean the same in the kernel, which works in another folder than the user.

    Raises: WorkbenchError for data, a network or a device that is not there.
    """
    values = dict(parameters)
    if values.get("data") is not None:
        values["data"] = canonical_name(values["data"])
    for name in NETWORKS & values.keys():
        if values[name] is not None:
            values[name] = located(values[name])
    if values.get("device") is not None:
        pick_device(values["device"])
    if _is_file(values.get("weights")):
        values["weights"] = str(Path(values["weights"]).expanduser().resolve())
    if values.get("folder") is not None:
        values["folder"] = str(Path(values["folder"]).expanduser().resolve())
    return values


def _is_file(name: str | None) -> bool:
    return name is not None and Path(name).expanduser().is_file()


def execution_key(study: Study, parameters: dict[str, Any]) -> dict[str, str]:
    """Name an execution, part by part, by what its results depend on.

    The parts are its notebook's code, its parameters, the code that trains or measures, its claim's file, the
    statistics, and its data. A change of the command line, of the doctor or of another claim changes none of them.
    """
    cells = code_cells(study.notebook_file)
    claims = _claim_files(study.notebook_file.stem, cells)
    parts = {
        "notebook": cells,
        "parameters": parameters,
        "code": _code(parameters, [*cells, *(file.read_text() for file in claims)]),
        "claim": files_hash(CLAIMS, claims),
        "statistics": source_hash("lab/statistics"),
        "data": dataset_digest(parameters["data"]) if parameters.get("data") is not None else None,
    }
    if (weights := parameters.get("weights")) is not None:
        cached = is_cached(parameters.get("model", "")) if weights == "released" else None
        parts["data"] = [parts["data"], sha256(Path(weights)) if _is_file(weights) else cached]
    return {part: digest_of(parts[part]) for part in PARTS}


def _claim_files(notebook: str, cells: list[str]) -> list[Path]:
    """The claim file of the notebook's name, and others that the notebook imports."""
    names = {notebook, *re.findall(r"from workbench\.claims import (\w+)", "\n".join(cells))}
    return [file for file in (CLAIMS / f"{name}.py" for name in sorted(names)) if file.is_file()]


def _code(parameters: dict[str, Any], texts: list[str]) -> list[str]:
    """The hashes of the code that trains, of what builds the networks and reads the weights, and of what measures."""
    networks = [parameters.get(name) or "" for name in sorted(NETWORKS)]
    measured = [part for part, module in MEASURES.items() if any(module in text for text in texts)]
    hashes = [code_hash(), *map(source_of, networks), *map(builder_hash, networks)]
    hashes += [source_hash(part) for part in measured]
    return hashes + ([source_hash("weights")] if parameters.get("weights") is not None else [])


def digest_of(value: Any) -> str:
    """A hash of plain data, 16 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _compare(execution: Execution, runs: list[Run]) -> None:
    """What the runs of its study, newest first, say of an execution."""
    same = [run for run in runs if run.tags.get("key.parameters") == execution.key["parameters"]]
    for run in same:
        if run.status == "FINISHED" and not _changes(execution, run):
            execution.state, execution.run = "finished", run.id
            return
    if not same:
        execution.why = "never run with these parameters" if runs else "never run"
        return
    last = same[0]
    execution.run = last.id
    changes = _changes(execution, last)
    if last.status == "FINISHED":
        execution.state = "stale"
        execution.why = f"{' and '.join(changes)} changed since run {last.id[:8]}"
    elif last.status == "RUNNING" and is_alive(last.tags.get("process", "")):
        execution.state = "running"
        execution.why = f"run {last.id[:8]}, in another process"
    else:
        execution.state = "failed" if last.status == "FAILED" else "interrupted"
        unknown_cause = "its process ended before it did" if last.status == "RUNNING" else "no cause known"
        cause = last.tags.get("cause", unknown_cause)[:100]
        execution.why = f"run {last.id[:8]}" + (f": {cause}" if cause != execution.state else "")


def _changes(execution: Execution, run: Run) -> list[str]:
    return [part for part in PARTS if run.tags.get(f"key.{part}") != execution.key[part]]


def _estimate(execution: Execution, runs: list[Run]) -> float | None:
    """The longest of the last runs that finished, with these parameters if there are any: others reused trainings.
    A run by hand says nothing: it took as long as its user looked at it."""
    finished = [r for r in runs if r.status == "FINISHED" and r.ended and r.tags.get("by") != "hand"]
    same = [run for run in finished if run.tags.get("key.parameters") == execution.key["parameters"]]
    if finished:
        return max(run.seconds for run in (same or finished)[:5])
    minutes = execution.study.minutes
    return minutes[execution.mode] * 60 if execution.mode in minutes else None
