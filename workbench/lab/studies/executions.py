"""The executions of studies: which must run, which the store already has, and why."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.data import canonical_name, dataset_digest
from workbench.errors import unknown
from workbench.files import local_path, sha256
from workbench.lab.store.client import Store
from workbench.lab.store.runs import Run
from workbench.lab.studies.notebook_file import code_cells
from workbench.lab.studies.spec import Study
from workbench.networks import builder_hash, is_user_network, located, source_of
from workbench.paths import import_folder
from workbench.source import files_hash, source_hash
from workbench.training import TrainConfig, code_hash
from workbench.training.first_batch import check_networks
from workbench.training.setup import pick_device
from workbench.weights.released import is_cached

RERUN = ("failed", "stale", "all")


NETWORKS = {"model", "model_bn"}  # parameters that name a network


# Code that measures without training. It is part of an execution's key if the notebook or claim imports it.
MEASURES = {
    "probes": "workbench.probes",
    "training/step_time.py": "workbench.training.step_time",
}
CLAIMS = import_folder() / "workbench" / "claims"
PARTS = ("notebook", "parameters", "code", "claim", "statistics", "data")  # of an execution's key


@dataclass
class Execution:
    """One notebook execution of the plan.

    Attributes:
        study: The study.
        parameters: All parameters of the notebook.
        mode: "full" or "quick".
        key: Hashes by part of what the results depend on, see `execution_key`.
        name: Name of the run.
        state: What the store has: new, finished, running, failed, interrupted or stale.
        why: The reason for the state.
        action: "run", "reuse" (the finished `run`) or "leave".
        run: Id of the store's run that gives the state.
        seconds: Estimated duration. None if unknown.
    """

    study: Study
    parameters: dict[str, Any]
    mode: str
    key: dict[str, str]
    name: str
    state: str = "new"
    why: str = ""
    action: str = "run"
    run: str | None = None
    seconds: float | None = None

    @property
    def reuse(self) -> str | None:
        """Return the id of the finished run to reuse, if the action is "reuse"."""
        return self.run if self.action == "reuse" else None


def plan(
    studies: Iterable[Study],
    store: Store,
    *,
    quick: bool,
    overrides: dict[str, str] | None = None,
    rerun: str | None = None,
) -> list[Execution]:
    """Plan every execution of the studies, in order.

    By default, an execution runs if no run in the store is finished or running with the current notebook, parameters,
    code and data.

    Args:
        studies: The studies.
        store: Searched for earlier runs.
        quick: Whether to plan quick executions.
        overrides: Values of parameters as text, from `-p`.
        rerun: "failed" or "stale" runs only these executions. "all" runs everything, finished or not.

    Returns:
        The executions, each with its action, its reason, and its estimated duration.

    Raises:
        WorkbenchError: If a parameter, a data set, a network or a device does not exist, or `rerun` is unknown.
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
            _compare(execution, runs, store)
            if execution.state == "new":
                _look_into_trash(execution, store)
            settled = ("finished", "running")
            must_run = execution.state not in settled if rerun is None else rerun in ("all", execution.state)
            execution.action = "run" if must_run else "reuse" if execution.state == "finished" else "leave"
            execution.seconds = _estimate(execution, runs) if must_run else 0.0
            planned.append(execution)
    check_networks(config for execution in planned if execution.action == "run" for config in _networks(execution))
    return planned


def _networks(execution: Execution) -> list[TrainConfig]:
    """Return a configuration for each user's network of an execution, with the images that it gets."""
    values = execution.parameters
    shared = {name: values[name] for name in ("data", "image_size", "device") if values.get(name) is not None}
    configs = []
    for name in sorted(NETWORKS & values.keys()):
        if is_user_network(values[name] or ""):
            arguments = values.get("model_args", {}) if name == "model" else values.get("bn_args", {})
            configs.append(TrainConfig(model=values[name], model_args=dict(arguments), epochs=1, **shared))
    return configs


def _located(parameters: dict[str, Any]) -> dict[str, Any]:
    """Make relative names and paths absolute, because the kernel runs in another folder.

    Raises:
        WorkbenchError: If data, a network or a device does not exist.
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
        values["weights"] = str(local_path(values["weights"]).resolve())
    if values.get("folder") is not None:
        values["folder"] = str(local_path(values["folder"]).resolve())
    return values


def _is_file(name: str | None) -> bool:
    return name is not None and local_path(name).is_file()


def execution_key(study: Study, parameters: dict[str, Any]) -> dict[str, str]:
    """Hash everything that the results of an execution depend on.

    Changes to the command line, the doctor or another claim do not change the key.

    Args:
        study: The study.
        parameters: All parameters of the notebook.

    Returns:
        One hash per part: the notebook's code, its parameters, the code that trains or measures, its claim's file, the
        statistics, and its data.
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
    """Return the claim file with the notebook's name, and others that the notebook imports."""
    names = {notebook, *re.findall(r"from workbench\.claims import (\w+)", "\n".join(cells))}
    return [file for file in (CLAIMS / f"{name}.py" for name in sorted(names)) if file.is_file()]


def _code(parameters: dict[str, Any], texts: list[str]) -> list[str]:
    """Return hashes of the code that trains, builds the networks, reads weights, and measures."""
    networks = [parameters.get(name) or "" for name in sorted(NETWORKS)]
    measured = [part for part, module in MEASURES.items() if any(module in text for text in texts)]
    hashes = [code_hash(), *map(source_of, networks), *map(builder_hash, networks)]
    hashes += [source_hash(part) for part in measured]
    return hashes + ([source_hash("weights")] if parameters.get("weights") is not None else [])


def digest_of(value: Any) -> str:
    """Return a hash of plain data, 16 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _compare(execution: Execution, runs: list[Run], store: Store) -> None:
    """Set an execution's state, reason and run from the runs of its study, newest first."""
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
    elif last.status == "RUNNING" and store.is_written(last):
        execution.state = "running"
        execution.why = f"run {last.id[:8]}, in another process"
    else:
        execution.state = "failed" if last.status == "FAILED" else "interrupted"
        unknown_cause = "its process ended before it did" if last.status == "RUNNING" else "no cause known"
        cause = last.tags.get("cause", unknown_cause)[:100]
        execution.why = f"run {last.id[:8]}" + (f": {cause}" if cause != execution.state else "")


def _look_into_trash(execution: Execution, store: Store) -> None:
    """Say that the execution's run was deleted in MLflow, if it was."""
    for run in store.deleted("studies", execution.mode):
        if run.status == "FINISHED" and not _changes(execution, run):
            execution.why = f"run {run.id[:8]} was deleted in MLflow"
            return


def _changes(execution: Execution, run: Run) -> list[str]:
    return [part for part in PARTS if run.tags.get(f"key.{part}") != execution.key[part]]


def _estimate(execution: Execution, runs: list[Run]) -> float | None:
    """Estimate the duration in seconds: the longest of the last five finished runs.

    Runs with the same parameters are preferred. Shorter runs may have reused trainings. Manual runs do not count,
    because they last as long as the user works. Without runs the estimate comes from the study's file.
    """
    finished = [r for r in runs if r.status == "FINISHED" and r.ended and r.tags.get("by") != "hand"]
    same = [run for run in finished if run.tags.get("key.parameters") == execution.key["parameters"]]
    if finished:
        return max(run.seconds for run in (same or finished)[:5])
    minutes = execution.study.minutes
    return minutes[execution.mode] * 60 if execution.mode in minutes else None
