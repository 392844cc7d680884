"""Studies executed: the plan, and each notebook as a run of the store in a process of its own."""

import contextlib
import os
import platform
import subprocess
from collections import deque
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from workbench.data import dataset_digest
from workbench.lab.executors import Choice, Executor, Outcome, Task
from workbench.lab.executors.choice import VARIABLE as EXECUTOR
from workbench.lab.executors.lifetime import whoami
from workbench.lab.store.client import UNREACHABLE, Store
from workbench.lab.studies.executions import NETWORKS, Execution, digest_of, plan
from workbench.lab.studies.session import SESSION
from workbench.lab.studies.spec import Study
from workbench.networks import is_library
from workbench.paths import import_folder, root

Listener = Callable[["Execution", dict], None]
NOTEBOOK_RETRIES = 1  # of an execution whose worker died under it


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
    events of workbench.lab.executors.events as they come.
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
    tags = {"key": digest_of(execution.key), **{f"key.{part}": value for part, value in execution.key.items()}}
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
    return {
        "WORKBENCH_ROOT": str(root()),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(import_folder()), os.environ.get("PYTHONPATH")])),
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def _task(execution: Execution, run_id: str, choice: Choice, listener: Listener) -> Task:
    environment = notebook_environment() | {
        SESSION: f"{run_id}|{execution.mode}|{whoami()}",
        EXECUTOR: str(choice),
    }
    if not all(
        is_library(execution.parameters.get(name) or "") for name in NETWORKS
    ):  # its modules are where the user works
        environment["PYTHONPATH"] += os.pathsep + os.getcwd()
    arguments = {
        "notebook": str(execution.study.notebook_file),
        "parameters": execution.parameters,
        "environment": environment,
    }
    return Task(
        run_id,
        "workbench.lab.studies.notebook:notebook_unit",
        arguments,
        lambda event: listener(execution, event),
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
    return subprocess.run(
        ["git", "-C", str(import_folder()), *arguments], capture_output=True, text=True
    ).stdout.strip()


def _environment() -> str:
    packages = sorted({f"{d.name}=={d.version}" for d in metadata.distributions()}, key=str.lower)
    return "\n".join([f"# Python {platform.python_version()}, {platform.platform()}", *packages]) + "\n"
