"""Tests of sessions by hand. Evidence: the store after notebooks have run as JupyterLab runs them."""

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from support.notebooks import notebook

from workbench.errors import WorkbenchError
from workbench.lab import Store, open_session

SETUP = """import pandas as pd
from workbench.lab import open_session
from workbench.lab.statistics.intervals import t_interval
from workbench.lab.statistics.verdict import Effect, Verdict
session = open_session('mine', globals())"""
VERDICT = """table = pd.DataFrame({'fact': ['x'], 'value': [x]})
session.verdict(Verdict(True, Effect('x', t_interval([x])), f'x was {x}.', table))"""


@pytest.fixture
def by_hand(root):
    """A function that runs cells in a kernel in notebooks/, as by hand, and returns the runs of the store."""

    def run(*cells, fails=False):
        (root / "notebooks").unlink()
        (root / "notebooks").mkdir()
        file = notebook(root / "notebooks" / "mine.ipynb", "x: int = 3  # a parameter", SETUP, *cells)
        client = NotebookClient(
            nbformat.read(file, 4), kernel_name="python3", resources={"metadata": {"path": str(file.parent)}}
        )
        if fails:
            with pytest.raises(CellExecutionError):
                client.execute()
        else:
            client.execute()
        return Store().search("studies", "full")

    return run


def test_by_hand_the_verdict_finishes_the_run(by_hand):
    (run,) = by_hand(VERDICT)
    assert run.status == "FINISHED"
    assert run.parameters == {"x": "3"}
    assert run.tags["by"] == "hand"
    assert run.tags["mlflow.note.content"].startswith("**Holds.** x was 3.")
    assert run.tags["verdict"] == "x was 3." and run.tags["effect"].startswith("x = 3")
    assert (run.metrics["effect"], run.metrics["holds"]) == (3, 1)
    assert Store().read_table(run.id, "verdict").to_dict("list") == {"fact": ["x"], "value": [3]}


def test_by_hand_an_error_after_the_verdict_leaves_the_run_finished(by_hand):
    (run,) = by_hand(VERDICT, "1 / 0", fails=True)
    assert run.status == "FINISHED"


def test_by_hand_an_error_in_a_cell_fails_the_run(by_hand):
    (run,) = by_hand("1 / 0", fails=True)
    assert run.status == "FAILED"


def test_by_hand_a_kernel_that_ends_without_a_verdict_leaves_no_running_run(by_hand):
    (run,) = by_hand("x + 1")
    assert run.status == "KILLED"


def test_by_hand_the_run_of_a_killed_kernel_is_closed_as_an_orphan(by_hand, root):
    from nbclient.exceptions import DeadKernelError

    with pytest.raises(DeadKernelError):
        by_hand("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    store = Store()
    (run,) = store.search("studies", "full")
    assert run.status == "RUNNING"
    assert list(store.close_orphans()) == [run.id]
    assert store.status(run.id) == "KILLED"


def test_by_hand_opening_a_session_again_ends_the_earlier_run(by_hand):
    runs = by_hand(SETUP, VERDICT)
    assert sorted(r.status for r in runs) == ["FINISHED", "KILLED"]


def test_by_hand_a_value_that_does_not_fit_is_refused_before_a_run_opens(root):
    with pytest.raises(WorkbenchError, match=r"`seeds`.*\blist.*range\(0, 3\)"):
        open_session("large_batch", {"seeds": range(3)})
    assert Store().search("studies", "full") == []
