"""Studies executed: the plan, and each notebook as a run of the store in a process of its own."""

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from workbench.data import canonical_name, dataset_digest
from workbench.lab import events
from workbench.lab.parameters import code_cells
from workbench.lab.processes import Family, whoami
from workbench.lab.session import VARIABLE
from workbench.lab.store import Store
from workbench.lab.study import Study
from workbench.paths import root
from workbench.training.config import source_hash

Listener = Callable[[dict], None]


@dataclass
class Execution:
    """One notebook execution of the plan; `reuse` is the finished run that already answers it."""

    study: Study
    parameters: dict[str, Any]
    mode: str
    key: str
    name: str
    reuse: str | None = None
    seconds: float | None = None  # estimated


def plan(
    studies: Iterable[Study], store: Store, *, quick: bool, overrides: dict[str, str] | None = None, rerun: bool = False
) -> list[Execution]:
    """Every execution of the studies, in order, with what can be reused and how long the rest may take."""
    mode = "quick" if quick else "full"
    found = []
    for study in studies:
        executions = study.executions(quick=quick, overrides=overrides)
        for parameters in executions:
            if "data" in parameters:  # the kernel works in another folder than the user
                parameters = {**parameters, "data": canonical_name(parameters["data"])}
            key = execution_key(study, parameters)
            label = " ".join(f"{k}={parameters[k]}" for k in study.matrix) if len(executions) > 1 else ""
            run = None if rerun else store.finished_notebook(key, mode)
            execution = Execution(
                study, parameters, mode, key, f"{study.name} {label}".strip(), run.info.run_id if run else None
            )
            execution.seconds = 0.0 if run else _estimate(store, study, mode)
            found.append(execution)
    return found


def execution_key(study: Study, parameters: dict[str, Any]) -> str:
    """Names an execution: its notebook's code, its parameters, the workbench's code and its data."""
    data = dataset_digest(parameters["data"]) if "data" in parameters else None
    identity = [code_cells(study.notebook_file), parameters, source_hash("."), data]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _estimate(store: Store, study: Study, mode: str) -> float | None:
    runs = store.search("studies", mode, f"tags.study = '{study.name}' and attributes.status = 'FINISHED'")
    if runs:
        return (runs[0].info.end_time - runs[0].info.start_time) / 1000
    return study.minutes[mode] * 60 if mode in study.minutes else None


# ---- the execution


def run_study(
    spec: str | Path | Study,
    *,
    quick: bool = False,
    overrides: dict[str, str] | None = None,
    rerun: bool = False,
    store: Store | None = None,
    listener: Listener = lambda event: None,
) -> list[str]:
    """Executes a study and returns the ids of its notebook runs, in order; what is finished in the store is reused.

    Raises: WorkbenchError before anything runs, for a file or parameters that cannot be meant.
    """
    study = spec if isinstance(spec, Study) else Study.load(spec)
    store = store or Store()
    return [execute(e, store, listener) for e in plan([study], store, quick=quick, overrides=overrides, rerun=rerun)]


def execute(execution: Execution, store: Store, listener: Listener = lambda event: None) -> str:
    """Executes one notebook in a process of its own, as a run that this process owns, and returns the run's id.

    The run ends FINISHED, FAILED (the notebook or its kernel broke) or KILLED (a signal ended it), whatever happened
    inside. `listener` is called with the events of workbench.lab.events as they come.
    """
    if execution.reuse:
        return execution.reuse
    study = execution.study
    run_id = store.open_notebook(
        study.name,
        study.notebook,
        execution.parameters,
        execution.mode,
        execution.name,
        {"key": execution.key, **_provenance(execution)},
    )
    status, message = "KILLED", "interrupted"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run.ipynb"
        try:
            code, message = _run_papermill(execution, run_id, out, listener)
            status = "FINISHED" if code == 0 else "KILLED" if code < 0 or code == 143 else "FAILED"
        finally:
            for file in (out, out.with_suffix(".html")):
                if file.exists():
                    store.log_file(run_id, file, "notebook")
            store.log_text(run_id, _environment(), "environment.txt")
            if status != "FINISHED":
                store.set_tags(run_id, cause=message[:4000])
            store.close_orphans(owner=run_id)
            store.close(run_id, status)
    if status != "FINISHED":
        listener({"kind": "broken", "name": execution.name, "status": status, "message": message})
    return run_id


def _run_papermill(execution: Execution, run_id: str, out: Path, listener: Listener) -> tuple[int, str]:
    """(exit code, last words) of the process that runs the notebook; its whole family ends with it."""
    events_file, errors_file = out.with_suffix(".events"), out.with_suffix(".err")
    environment = os.environ | {
        VARIABLE: f"{run_id}|{execution.mode}|{whoami()}",
        events.VARIABLE: str(events_file),
        "WORKBENCH_ROOT": str(root()),
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")])
        ),
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    command = [
        sys.executable,
        "-m",
        "workbench.lab.notebook",
        str(execution.study.notebook_file),
        str(out),
        json.dumps(execution.parameters),
    ]
    reader = events.Reader(events_file)
    with open(errors_file, "w") as errors:
        process = subprocess.Popen(command, env=environment, stdout=errors, stderr=errors, start_new_session=True)
        family = Family(process.pid)
        try:
            while process.poll() is None:
                family.look()
                for event in reader.read():
                    listener(event)
                time.sleep(0.2)
        finally:
            family.end()
    for event in reader.read():
        listener(event)
    words = [line for line in errors_file.read_text().splitlines() if line.strip()]
    return process.returncode, words[-1] if words else f"the notebook's process ended with code {process.returncode}"


def _provenance(execution: Execution) -> dict[str, str]:
    """Where the numbers come from: commit, data, versions."""
    tags = {
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "question": execution.study.question,
    }
    if "data" in execution.parameters:
        tags["data"] = dataset_digest(execution.parameters["data"])
    if commit := _git("rev-parse", "HEAD"):
        dirty = _git("status", "--porcelain", "--", "workbench", "notebooks")
        tags |= {"mlflow.source.git.commit": commit, "git_dirty": str(bool(dirty))}
    return tags


def _git(*arguments: str) -> str:
    """What git says of the checkout that this code lies in; nothing where it lies in none."""
    folder = Path(__file__).resolve().parents[2]
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True).stdout.strip()


def _environment() -> str:
    packages = sorted({f"{d.name}=={d.version}" for d in metadata.distributions()}, key=str.lower)
    return "\n".join([f"# Python {platform.python_version()}, {platform.platform()}", *packages]) + "\n"
