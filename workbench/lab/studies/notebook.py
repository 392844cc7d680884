"""The program that executes a notebook with papermill. No other file imports papermill.

This command writes OUT.ipynb and OUT.html:

    python -m workbench.lab.studies.notebook IN.ipynb OUT.ipynb '{"trials": 4}'
"""

import json
import re
import signal
import sys
from pathlib import Path

from workbench import unexpected
from workbench.lab.executors import channel, context
from workbench.lab.executors.lifetime import die_with, is_alive
from workbench.lab.studies.report import page

EXPECTED = ("WorkbenchError", "PlanIsWritten")  # errors of cells that need no traceback
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # in IPython's tracebacks


def execute(source: Path, target: Path, parameters: dict) -> None:
    """Run a notebook in a new kernel, in the notebook's folder.

    Args:
        source: The notebook.
        target: The executed notebook. It and the .html file next to it are also written if the notebook fails.
        parameters: Values of the notebook's parameters.
    """
    import papermill

    try:
        papermill.execute_notebook(
            source,
            target,
            parameters,
            kernel_name="python3",
            kernel_manager_class=_own_kernel_manager(),
            cwd=source.parent,
            progress_bar=False,
            log_output=False,
            request_save_on_cell_execute=True,
        )
    finally:
        if target.exists():
            target.with_suffix(".html").write_text(to_html(target))


def _own_kernel_manager() -> type:
    """Return the class of a kernel manager that starts this interpreter.

    Jupyter would take the first kernel with the name python3 on its path, which may have another interpreter.
    """
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    class OwnKernelManager(AsyncKernelManager):
        kernel_spec = KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())

    return OwnKernelManager


def to_html(notebook: Path) -> str:
    """Return the executed notebook as one HTML page (see report.py)."""
    import nbformat

    return page(nbformat.read(notebook, as_version=4), notebook.stem)


def _abandon() -> None:
    """Close the run of a notebook whose launcher is gone, even if its kernel has not started."""
    from workbench.lab.studies.session import abandon_run

    abandon_run()


def main(source: str, target: str, parameters: str) -> int:
    """Execute a notebook for the launcher that the context names, and return the exit code."""
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    here = context.current()
    if here is not None:
        if not is_alive(here.launcher):  # it died while this process started
            _abandon()
            return 1
        die_with(here.launcher, first=_abandon, grace=20.0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # raises, so that papermill ends its kernel
    try:
        execute(Path(source), Path(target), json.loads(parameters))
    except PapermillExecutionError as error:
        return _fail(_in_words(error))
    except DeadKernelError:
        return _fail("the notebook's kernel was killed, by a user or because memory ran out")
    except Exception as error:
        return _fail(unexpected.explain(error))
    return 0


def _in_words(error) -> str:
    """Return a cell's error on one line, and where its traceback is unless the user can correct it."""
    words = f"{error.ename}: {error.evalue}".replace("\n", "; ")
    if error.ename in EXPECTED:
        return words
    return f"{words} ({unexpected.saved(COLOUR.sub('', chr(10).join(error.traceback)))})"


def _fail(message: str) -> int:
    channel.send(kind="failure", message=message)
    print(message, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
