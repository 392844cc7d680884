"""A notebook's side, by hand. Evidence: notebooks run as JupyterLab would run them, the store looked at afterwards."""

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from support.notebooks import notebook

from workbench.errors import WorkbenchError
from workbench.lab import Store, open_session

SETUP = "import pandas as pd\nfrom workbench.lab import open_session\nfrom workbench.lab.statistics.intervals import t_interval\nfrom workbench.lab.statistics.verdict import Effect, Verdict\nsession = open_session('mine', globals())"
VERDICT = "session.verdict(Verdict(True, Effect('x', t_interval([x])), f'x was {x}.', pd.DataFrame({'fact': ['x'], 'value': [x]})))"


@pytest.fixture
def by_hand(root):
    """Runs cells as by hand, in a kernel that starts in notebooks/, and returns the runs of the store."""

    def run(*cells, fails=False):
        (root / "notebooks").unlink()
        (root / "notebooks").mkdir()
        file = notebook(root / "notebooks" / "mine.ipynb", "x: int = 3  # a knob", SETUP, *cells)
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


def test_by_hand_an_error_after_the_verdict_is_the_users_own(by_hand):
    (run,) = by_hand(VERDICT, "1 / 0", fails=True)
    assert run.status == "FINISHED"


def test_by_hand_an_error_in_a_cell_fails_the_run(by_hand):
    (run,) = by_hand("1 / 0", fails=True)
    assert run.status == "FAILED"


def test_by_hand_a_kernel_that_ends_without_a_verdict_leaves_no_running_run(by_hand):
    (run,) = by_hand("x + 1")
    assert run.status == "KILLED"


def test_by_hand_a_kernel_that_is_killed_is_found_by_the_doctor(by_hand, root):
    from nbclient.exceptions import DeadKernelError

    with pytest.raises(DeadKernelError):
        by_hand("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    store = Store()
    (run,) = store.search("studies", "full")
    assert run.status == "RUNNING"
    assert list(store.close_orphans()) == [run.id]
    assert store.status(run.id) == "KILLED"


def test_opening_again_ends_the_run_before(by_hand):
    runs = by_hand(SETUP, VERDICT)
    assert sorted(r.status for r in runs) == ["FINISHED", "KILLED"]


def test_by_hand_a_value_that_no_parameter_can_have_is_refused_before_a_run_opens(root):
    with pytest.raises(WorkbenchError, match=r"parameter `seeds` \(=range\(0, 3\)\) must be of type list"):
        open_session("large_batch", {"seeds": range(3)})
    assert Store().search("studies", "full") == []
