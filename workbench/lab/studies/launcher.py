"""Execution of studies: each notebook is a run of the store and a process on this machine."""

import contextlib
import os
import platform
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from workbench import environment
from workbench.data import dataset_digest
from workbench.files import write_whole
from workbench.lab.executors import Choice
from workbench.lab.executors.context import Context
from workbench.lab.executors.lifetime import announced
from workbench.lab.store.client import UNREACHABLE, RunIsGone, Store
from workbench.lab.store.locations import ASIDE, runs_folder
from workbench.lab.studies.executions import NETWORKS, Execution, digest_of, plan
from workbench.lab.studies.notebook_process import NotebookEnd, NotebookProcess
from workbench.lab.studies.spec import Study
from workbench.networks import is_library
from workbench.paths import import_folder

Listener = Callable[[Execution, dict], None]
LOOK_EVERY = 0.2  # seconds between looks at the notebooks


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
    """Execute a study. Executions that are finished in the store are reused.

    Args:
        spec: A study, its name, or the path of its file.
        quick: Whether to run the quick version.
        overrides: Values of parameters as text, by name.
        rerun: "failed", "stale" or "all", as in `plan`.
        store: Takes the runs. None: the default store.
        listener: Receives the messages of `workbench.lab.executors.channel` as they arrive.
        executor: Where notebooks and their trainings run, such as "processes:4".

    Returns:
        The ids of the notebook runs, in order.

    Raises:
        WorkbenchError: If the study or a parameter is invalid. Nothing has run then.
    """
    study = spec if isinstance(spec, Study) else Study.load(spec)
    store = store or Store()
    executions = plan([study], store, quick=quick, overrides=overrides, rerun=rerun)
    choice = Choice.parse(executor) if isinstance(executor, str) else executor or Choice.from_environment()
    return execute(executions, store, choice, lambda execution, event: listener(event))


def execute(
    executions: list[Execution], store: Store, choice: Choice, listener: Listener = lambda execution, message: None
) -> list[str]:
    """Execute notebooks as runs that this process owns.

    Every run ends FINISHED, FAILED (the notebook or its kernel broke) or KILLED (a signal ended it). An interruption
    stops all notebooks, and a second interruption stops them at once.

    Args:
        executions: Those with the action "run" are executed, up to `choice.count` at a time.
        store: Takes the runs.
        choice: The executor of the trainings.
        listener: Receives every event as (execution, message).

    Returns:
        The ids of the runs in order, including reused ones.
    """
    todo = deque(e for e in executions if e.action == "run")
    run_ids = {id(e): e.run for e in executions if e.action == "reuse"}
    running: dict[str, tuple[Execution, NotebookProcess]] = {}
    open_runs: set[str] = set()  # those of `running`, and one whose process does not run yet
    variables = choice.shared_environment() if todo else {}
    try:
        while todo or running:
            while todo and len(running) < choice.count:
                execution = todo.popleft()
                run_id = run_ids[id(execution)] = _open(execution, store)
                open_runs.add(run_id)
                listener(execution, {"kind": "started"})
                running[run_id] = execution, start_notebook(execution, run_id, choice, variables)
            time.sleep(LOOK_EVERY)
            for run_id, (execution, process) in list(running.items()):
                has_ended = process.has_ended()  # before reading, so that the last messages are read as well
                for message in process.messages():
                    listener(execution, message)
                if has_ended:
                    messages = _close(store, run_id, process.end())
                    del running[run_id]
                    open_runs.discard(run_id)
                    for message in messages:
                        listener(execution, message)
    finally:
        _stop([process for _, process in running.values()])
        for run_id in open_runs:
            with contextlib.suppress(*UNREACHABLE):  # the next start closes them
                _finish(store, run_id, "KILLED", "interrupted")
    return [run_ids[id(e)] for e in executions if id(e) in run_ids]


def start_notebook(
    execution: Execution,
    run_id: str | None,
    choice: Choice,
    variables: dict[str, str] | None = None,
    plan_file: Path | None = None,
) -> NotebookProcess:
    """Start the process of an execution.

    Args:
        execution: The execution.
        run_id: Its run in the store. None: nothing is stored.
        choice: The executor of its trainings.
        variables: Further environment variables.
        plan_file: Receives the missing trainings, and none of them runs. None: they run.
    """
    context = Context(execution.study.name, execution.mode, announced(), run_id, executor=str(choice), plan=plan_file)
    variables = dict(variables or {})
    if not all(is_library(execution.parameters.get(name) or "") for name in NETWORKS):
        paths = [
            str(import_folder()),
            environment.text("PYTHONPATH"),
            os.getcwd(),
        ]  # a user's modules are in their working folder
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return NotebookProcess(execution.study.notebook_file, execution.parameters, context, variables)


def _stop(processes: Iterable[NotebookProcess]) -> None:
    """End all processes in parallel. An interruption meanwhile kills them at once."""
    processes = list(processes)
    if not processes:
        return
    with ThreadPoolExecutor(len(processes)) as threads:
        ending = [threads.submit(process.stop) for process in processes]
        try:
            for future in ending:
                future.result()
        except KeyboardInterrupt:
            for process in processes:
                process.kill()


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


def _close(store: Store, run_id: str, end: NotebookEnd) -> list[dict]:
    """Store the files of an ended notebook, set the final status, and return the messages about its end.

    If the run was deleted for good meanwhile, keep the files in another folder.
    """
    try:
        for name, text in end.files.items():
            store.log_text(run_id, text, f"notebook/{name}")
        store.log_text(run_id, _environment(), "environment.txt")
        _finish(store, run_id, end.status, end.message)
    except RunIsGone as error:
        place = runs_folder() / ASIDE / "studies" / run_id
        for name, text in end.files.items():
            write_whole(place / name, lambda part, text=text: part.write_text(text))
        end = NotebookEnd("FAILED", f"{error} Its trainings are kept, and its notebook is in {place}.")
    broken = {"kind": "broken", "status": end.status, "message": end.message}
    return [broken] * (end.status != "FINISHED") + [{"kind": "ended", "status": end.status}]


def _finish(store: Store, run_id: str, status: str, message: str) -> None:
    if status != "FINISHED":
        store.set_tags(run_id, cause=message[:4000])
    store.close_orphans(owner=run_id)
    store.close(run_id, status)


def _provenance(execution: Execution) -> dict[str, str]:
    """Return tags with the provenance: question, commit, data, versions."""
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
    """Return git's output for the checkout that contains this code. Empty without a checkout."""
    return subprocess.run(
        ["git", "-C", str(import_folder()), *arguments], capture_output=True, text=True
    ).stdout.strip()


def _environment() -> str:
    packages = sorted({f"{d.name}=={d.version}" for d in metadata.distributions()}, key=str.lower)
    return "\n".join([f"# Python {platform.python_version()}, {platform.platform()}", *packages]) + "\n"
