"""A notebook's access to the store, with the same calls by hand and under the launcher.

Under the launcher, the run is already open. The context names it and the launcher's process, which alone sets the final
status.

By hand, in JupyterLab, the run opens here. The verdict ends it as FINISHED, and an uncaught error of a cell as FAILED.
If the kernel dies, `workbench doctor` closes the run.
"""

import atexit
import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd

from workbench.bars import counted
from workbench.lab.executors import channel, context
from workbench.lab.executors.lifetime import die_with, is_alive, whoami
from workbench.lab.statistics.verdict import Verdict
from workbench.lab.store.client import RunIsGone, Store
from workbench.paths import root


@dataclass
class Session:
    """The destination of the results of one notebook execution.

    Attributes:
        store: The store.
        study: Name of the study.
        mode: "full" or "quick".
        run_id: The notebook's run. None if no notebook output is stored. This is the case for trainings without a
            notebook, and for notebooks that only list the trainings they need.
        by_hand: Whether a user runs the notebook, and not the launcher.
    """

    store: Store
    study: str
    mode: str = "full"
    run_id: str | None = None
    by_hand: bool = True

    def progress(self, items: Iterable, name: str) -> Iterator:
        """Yield the items and report progress, with a bar here or to the launcher."""
        items = list(items)
        shown = counted(items, desc=name, unit="item", shown=not channel.has_listener(), leave=True)
        for i, item in enumerate(shown):
            channel.send(kind="progress", name=name, done=i, total=len(items))
            yield item

    def table(self, table: pd.DataFrame, name: str = "table") -> pd.DataFrame:
        """Store a table with the run, and return it for display."""
        if self.run_id is not None:
            self.store.log_table(self.run_id, table, name)
        return table

    def figure(self, figure, name: str = "figure"):
        """Store a figure with the run, and return it for display. In quick mode it is stamped DEMO."""
        import matplotlib.pyplot as plt

        if self.mode == "quick":
            figure.text(
                0.5,
                0.5,
                "DEMO",
                fontsize=90,
                color="0.5",
                alpha=0.18,
                ha="center",
                va="center",
                rotation=25,
                zorder=100,
            )
        if self.run_id is not None:
            self.store.log_figure(self.run_id, figure, name)
        plt.close(figure)  # otherwise the notebook shows it twice
        return figure

    def verdict(self, verdict: Verdict) -> Verdict:
        """Store the verdict with the run, and return it for display.

        Its details become the table `verdict`. By hand, this ends the run as FINISHED.
        """
        verdict = verdict.stamped("DEMO") if self.mode == "quick" else verdict
        if self.run_id is None:
            return verdict
        self.store.describe(self.run_id, str(verdict))
        tags = {"answer": verdict.answer, "verdict": verdict.headline, "effect": str(verdict.effect)}
        self.store.set_tags(self.run_id, **tags)
        self.store.log_metrics(self.run_id, verdict.metrics())
        self.store.log_table(self.run_id, verdict.table, "verdict")
        if self.by_hand:
            self.store.close(self.run_id, "FINISHED")
        return verdict


_open_by_hand: Session | None = None


def open_session(notebook: str, namespace: dict) -> Session:
    """Open the session of a notebook, for example `open_session("large_batch", globals())`.

    By hand, this opens a run with the current values of the notebook's parameters.

    Args:
        notebook: The notebook's file name without suffix.
        namespace: The variables of the notebook, which include its parameters.

    Raises:
        WorkbenchError: If the value of a parameter does not fit its annotation.
    """
    here = context.current()
    if here is None or not is_alive(here.launcher):
        return _open_by_hand_session(notebook, namespace)
    die_with(here.launcher, first=abandon_run)  # a kernel must not train on without its launcher
    die_with(whoami(os.getppid()))
    return Session(Store(), here.study, here.mode, here.run_id, by_hand=False)


def abandon_run() -> None:
    """Close the run that the context names, and its trainings, because their launcher is gone."""
    here = context.current()
    if here is None or here.run_id is None:
        return
    run_id = here.run_id
    store = Store()
    with contextlib.suppress(RunIsGone):
        if store.status(run_id) == "RUNNING":
            store.set_tags(run_id, cause="the launcher ended before the notebook did")
            store.close(run_id, "KILLED")
    store.close_orphans(owner=run_id)


def _open_by_hand_session(notebook: str, namespace: dict) -> Session:
    global _open_by_hand
    from workbench.lab.studies.parameters import read_parameters

    _end_unfinished()
    store = Store()
    names = read_parameters(root() / "notebooks" / f"{notebook}.ipynb")
    parameters = {name: knob.check(namespace[name]) for name, knob in names.items() if name in namespace}
    run_id = store.open_notebook(
        notebook, f"{notebook}.ipynb", parameters, "full", f"{notebook} (by hand)", {"by": "hand"}
    )
    _open_by_hand = Session(store, notebook, "full", run_id)
    _watch_cells()
    return _open_by_hand


def _watch_cells() -> None:
    """Close the run as FAILED when a cell raises an error, and as KILLED when the kernel ends."""
    if getattr(_watch_cells, "done", False):
        return
    _watch_cells.done = True
    atexit.register(_end_unfinished)
    try:
        from IPython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    if shell is not None:
        shell.events.register("post_run_cell", _after_cell)


def _after_cell(result) -> None:
    if not result.success:
        _end_unfinished("FAILED")


def _end_unfinished(status: str = "KILLED") -> None:
    """Close the run, unless its verdict has closed it. Later errors do not count."""
    if _open_by_hand is None:
        return
    with contextlib.suppress(RunIsGone):
        if _open_by_hand.store.status(_open_by_hand.run_id) == "RUNNING":
            _open_by_hand.store.close(_open_by_hand.run_id, status)
