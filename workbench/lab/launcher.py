"""Studies executed: the plan, and each notebook as a run of the store in a process of its own."""

import contextlib
import hashlib
import json
import os
import platform
import subprocess
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from workbench.data import canonical_name, dataset_digest
from workbench.errors import unknown
from workbench.files import sha256
from workbench.lab.executors import Choice, Executor, Outcome, Task
from workbench.lab.executors.choice import VARIABLE as EXECUTOR
from workbench.lab.parameters import code_cells
from workbench.lab.processes import is_alive, whoami
from workbench.lab.session import SESSION
from workbench.lab.store import UNREACHABLE, Run, Store
from workbench.lab.study import Study
from workbench.models import zoo
from workbench.models.checkpoints import is_cached
from workbench.models.own.networks import is_own, named, source_of
from workbench.paths import root
from workbench.source import source_hash
from workbench.training.setup import pick_device

Listener = Callable[["Execution", dict], None]
RERUN = ("failed", "stale", "all")
NETWORKS = {"model", "model_bn"}  # parameters that name one
PARTS = ("notebook", "parameters", "code", "data")  # of what names an execution
NOTEBOOK_RETRIES = 1  # of an execution whose worker died under it


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
    found = []
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
            found.append(execution)
    return found


def _located(parameters: dict[str, Any]) -> dict[str, Any]:
    """The same with names that mean the same in the kernel, which works in another folder than the user.

    Raises: WorkbenchError for data, a network or a device that is not there.
    """
    found = dict(parameters)
    if found.get("data") is not None:
        found["data"] = canonical_name(found["data"])
    for name in NETWORKS & found.keys():
        if found[name] is not None:
            zoo.entry(found[name])
            found[name] = named(found[name])
    if found.get("device") is not None:
        pick_device(found["device"])
    if _is_file(found.get("weights")):
        found["weights"] = str(Path(found["weights"]).expanduser().resolve())
    if found.get("folder") is not None:
        found["folder"] = str(Path(found["folder"]).expanduser().resolve())
    return found


def _is_file(name: str | None) -> bool:
    return name is not None and Path(name).expanduser().is_file()


def execution_key(study: Study, parameters: dict[str, Any]) -> dict[str, str]:
    """Names an execution, part by part: its notebook's code, its parameters, the workbench's code and its data."""
    parts = {
        "notebook": code_cells(study.notebook_file),
        "parameters": parameters,
        "code": source_hash(".") + "".join(source_of(parameters.get(name) or "") for name in sorted(NETWORKS)),
        "data": dataset_digest(parameters["data"]) if parameters.get("data") is not None else None,
    }
    if (weights := parameters.get("weights")) is not None:
        cached = is_cached(parameters.get("model", "")) if weights == "released" else None
        parts["data"] = [parts["data"], sha256(Path(weights)) if _is_file(weights) else cached]
    return {part: _hash(parts[part]) for part in PARTS}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _compare(execution: Execution, runs: list[Run]) -> None:
    """What the runs of its study, newest first, say of an execution."""
    same = [run for run in runs if run.data.tags.get("key.parameters") == execution.key["parameters"]]
    for run in same:
        if run.info.status == "FINISHED" and not _changes(execution, run):
            execution.state, execution.run = "finished", run.info.run_id
            return
    if not same:
        execution.why = "never run with these parameters" if runs else "never run"
        return
    last = same[0]
    execution.run = last.info.run_id
    changes = _changes(execution, last)
    if last.info.status == "FINISHED":
        execution.state = "stale"
        execution.why = f"{' and '.join(changes)} changed since run {last.info.run_id[:8]}"
    elif last.info.status == "RUNNING" and is_alive(last.data.tags.get("process", "")):
        execution.state = "running"
        execution.why = f"run {last.info.run_id[:8]}, in another process"
    else:
        execution.state = "failed" if last.info.status == "FAILED" else "interrupted"
        unknown_cause = "its process ended before it did" if last.info.status == "RUNNING" else "no cause known"
        cause = last.data.tags.get("cause", unknown_cause)[:100]
        execution.why = f"run {last.info.run_id[:8]}" + (f": {cause}" if cause != execution.state else "")


def _changes(execution: Execution, run: Run) -> list[str]:
    return [part for part in PARTS if run.data.tags.get(f"key.{part}") != execution.key[part]]


def _estimate(execution: Execution, runs: list[Run]) -> float | None:
    """The longest of the last runs that finished, with these parameters if there are any: others reused trainings.
    A run by hand says nothing: it took as long as its user looked at it."""
    finished = [r for r in runs if r.info.status == "FINISHED" and r.info.end_time and r.data.tags.get("by") != "hand"]
    same = [run for run in finished if run.data.tags.get("key.parameters") == execution.key["parameters"]]
    if finished:
        return max((run.info.end_time - run.info.start_time) / 1000 for run in (same or finished)[:5])
    minutes = execution.study.minutes
    return minutes[execution.mode] * 60 if execution.mode in minutes else None


# ---- the execution


def run_study(
    spec: str | Path | Study,
    *,
    quick: bool = False,
    overrides: dict[str, str] | None = None,
    rerun: str | None = None,
    store: Store | None = None,
    listener: Callable[[dict], None] = lambda event: None,
    executor: Choice | str | None = None,
) -> list[str]:
    """Executes a study and returns the ids of its notebook runs, in order; what is finished in the store is reused.

    Args: `executor` says where notebooks and their trainings run, e.g. "processes:4"; `listener` is called with the
    events of workbench.lab.events as they come.
    Raises: WorkbenchError before anything runs, for a file or parameters that cannot be meant.
    """
    study = spec if isinstance(spec, Study) else Study.load(spec)
    store = store or Store()
    executions = plan([study], store, quick=quick, overrides=overrides, rerun=rerun)
    choice = Choice.parse(executor) if isinstance(executor, str) else executor or Choice.from_environment()
    return execute(executions, store, choice, lambda execution, event: listener(event))


def execute(
    executions: list[Execution], store: Store, choice: Choice, listener: Listener = lambda execution, event: None
) -> list[str]:
    """Executes notebooks, each in processes of its own, as runs that this process owns; returns the run ids in order.

    A run ends FINISHED, FAILED (the notebook or its kernel broke) or KILLED (a signal ended it), whatever happened
    inside. An interruption stops all of them; a second one at once.
    """
    todo = deque(e for e in executions if e.action == "run")
    engine = choice.make()
    running: dict[str, tuple[Execution, int]] = {}
    run_ids = {id(e): e.run for e in executions if e.action == "reuse"}
    retries: dict[int, int] = {}
    ended = False
    try:
        while todo or running:
            while todo and engine.has_room():
                execution = todo.popleft()
                run_id = _open(execution, store)
                run_ids[id(execution)], running[run_id] = run_id, execution
                listener(execution, {"kind": "started"})
                engine.submit(_task(execution, run_id, choice, listener))
            outcome = engine.wait()
            execution = running.pop(run_id := outcome.task.name)
            again = outcome.died and retries.setdefault(id(execution), 0) < NOTEBOOK_RETRIES
            status, message = _close(store, run_id, outcome)
            if again:
                retries[id(execution)] += 1
                todo.appendleft(execution)
            elif status != "FINISHED":
                listener(execution, {"kind": "broken", "status": status, "message": message})
            if not again:
                listener(execution, {"kind": "ended", "status": status})
        ended = True
    finally:
        _stop(engine, at_once=ended)
        with contextlib.suppress(*UNREACHABLE):  # the next start closes them
            for run_id in running:
                _finish(store, run_id, "KILLED", "interrupted")
    return [run_ids[id(e)] for e in executions if id(e) in run_ids]


def _stop(engine: Executor, at_once: bool) -> None:
    try:
        engine.stop(at_once)
    except KeyboardInterrupt:
        engine.stop(at_once=True)


def _open(execution: Execution, store: Store) -> str:
    tags = {"key": _hash(execution.key), **{f"key.{part}": value for part, value in execution.key.items()}}
    study = execution.study
    return store.open_notebook(
        study.name,
        study.notebook,
        execution.parameters,
        execution.mode,
        execution.name,
        {**tags, **_provenance(execution)},
    )


def notebook_environment() -> dict[str, str]:
    """What a notebook's process needs to find this checkout and this store, and to be quiet."""
    here = str(Path(__file__).resolve().parents[2])
    return {
        "WORKBENCH_ROOT": str(root()),
        "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def _task(execution: Execution, run_id: str, choice: Choice, listener: Listener) -> Task:
    environment = notebook_environment() | {
        SESSION: f"{run_id}|{execution.mode}|{whoami()}",
        EXECUTOR: str(choice),
    }
    if any(is_own(execution.parameters.get(name) or "") for name in NETWORKS):  # its modules lie where the user works
        environment["PYTHONPATH"] += os.pathsep + os.getcwd()
    arguments = {
        "notebook": str(execution.study.notebook_file),
        "parameters": execution.parameters,
        "environment": environment,
    }
    return Task(
        run_id,
        "workbench.lab.notebook:notebook_unit",
        arguments,
        lambda event: listener(execution, event),
        coordinator=True,
        retries=0,  # a run that was lost is closed, and another opened
    )


def _close(store: Store, run_id: str, outcome: Outcome) -> tuple[str, str]:
    """Sets the final status, and returns it with the last words."""
    if outcome.error is not None:
        status, message = ("KILLED" if outcome.died or outcome.error == "stopped" else "FAILED"), outcome.error
    else:
        code, message = outcome.value["code"], outcome.value["message"]
        status = "FINISHED" if code == 0 else "KILLED" if code < 0 or code == 143 else "FAILED"
        for name, text in outcome.value["files"].items():
            store.log_text(run_id, text, f"notebook/{name}")
        store.log_text(run_id, _environment(), "environment.txt")
    _finish(store, run_id, status, message)
    return status, message


def _finish(store: Store, run_id: str, status: str, message: str) -> None:
    if status != "FINISHED":
        store.set_tags(run_id, cause=message[:4000])
    store.close_orphans(owner=run_id)
    store.close(run_id, status)


def _provenance(execution: Execution) -> dict[str, str]:
    """Where the numbers come from: commit, data, versions."""
    tags = {
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "question": execution.study.question,
    }
    if execution.parameters.get("data") is not None:
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
