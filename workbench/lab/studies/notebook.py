"""Notebooks as programs: executed by papermill, each in a process of its own. No other file knows papermill.

python -m workbench.lab.studies.notebook IN.ipynb OUT.ipynb '{"trials": 4}'     executes, writes OUT.ipynb and OUT.html
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from workbench.lab.executors import events
from workbench.lab.executors.lifetime import SESSION, Family, die_with, is_alive, whoami
from workbench.lab.studies.report import page

LOOK_EVERY = 0.2  # seconds between looks at a process and its events


def notebook_unit(arguments: dict, send: Callable, stop: Callable[[], bool]) -> dict:
    """Executes a notebook in a process of its own, whose whole family ends with it; what a worker does.

    Sends the events as they come. Returns the exit code, its last words, and the texts of run.ipynb and run.html.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run.ipynb"
        code, message = _in_a_process(arguments, out, send, stop)
        files = [file for file in (out, out.with_suffix(".html")) if file.exists()]
        return {"code": code, "message": message, "files": {file.name: file.read_text() for file in files}}


def _in_a_process(arguments: dict, out: Path, send: Callable, stop: Callable[[], bool]) -> tuple[int, str]:
    reader = events.Reader(out.with_suffix(".events"))
    launcher = arguments["environment"].get(SESSION, "").rpartition("|")[2]
    environment = os.environ | arguments["environment"] | {events.VARIABLE: str(out.with_suffix(".events"))}
    command = [sys.executable, "-m", "workbench.lab.studies.notebook", arguments["notebook"], str(out)]
    command.append(json.dumps(arguments["parameters"]))
    with open(out.with_suffix(".err"), "w+") as errors:
        process = subprocess.Popen(command, env=environment, stdout=errors, stderr=errors, start_new_session=True)
        family = Family(process.pid)
        try:
            while process.poll() is None:
                family.look()
                for event in reader.read():
                    send(event)
                if stop():
                    raise KeyboardInterrupt
                time.sleep(LOOK_EVERY)
        finally:
            if not launcher or is_alive(launcher):  # else they see it too, close the run, and end by themselves
                family.end()
        for event in reader.read():
            send(event)
        errors.seek(0)
        return process.returncode, _last_words(process.returncode, errors.read())


def _last_words(code: int, output: str) -> str:
    if code < 0 or code == 143:
        return f"the notebook's process was ended by signal {-code if code < 0 else 15}"
    words = [line for line in output.splitlines() if line.strip() and "[IPKernelApp] WARNING" not in line]
    return words[-1] if words else f"the notebook's process ended with code {code}"


def execute(source: Path, target: Path, parameters: dict) -> None:
    """Runs a notebook in a kernel of its own, from the notebook's folder; `target` and its .html are written whatever
    happens."""
    import papermill

    try:
        papermill.execute_notebook(
            source,
            target,
            parameters,
            kernel_name="python3",
            cwd=source.parent,
            progress_bar=False,
            log_output=False,
            request_save_on_cell_execute=True,
        )
    finally:
        if target.exists():
            target.with_suffix(".html").write_text(to_html(target))


def to_html(notebook: Path) -> str:
    """The executed notebook as one page (see report.py)."""
    import nbformat

    return page(nbformat.read(notebook, as_version=4), notebook.stem)


def _abandon() -> None:
    """Closes the run of a notebook whose launcher is gone, also when its kernel does not know of the run yet."""
    from workbench.lab.studies.session import abandon_run

    abandon_run()


def main(source: str, target: str, parameters: str) -> int:
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    launcher = os.environ.get(SESSION, "").rpartition("|")[2]
    if launcher and not is_alive(launcher):  # it died while this process began, which then has another parent
        _abandon()
        return 1
    for identity in filter(None, (launcher, whoami(os.getppid()))):
        die_with(identity, first=_abandon, grace=20.0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that papermill ends its kernel
    try:
        execute(Path(source), Path(target), json.loads(parameters))
    except PapermillExecutionError as error:
        print(f"{error.ename}: {error.evalue}".replace("\n", "; "), file=sys.stderr)
        return 1
    except DeadKernelError:
        print("the notebook's kernel was killed: by hand, or by the system where memory ran out", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
