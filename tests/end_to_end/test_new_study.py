"""A study consists of four files: its YAML file, notebook, claim and test.

Evidence: these four files add a toy study to a copy of the checkout. It runs, is judged, and its test passes.
"""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from support.checkout import CHECKOUT

QUESTION = "question: Is a coin that always shows heads fair?\nnotebook: toy.ipynb\nparameters: {tosses: 12}\n"
CLAIM = '''"""Is a coin fair? Table: one row per toss, with heads (0 or 1)."""

import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.intervals import share_interval, share_p
from workbench.lab.statistics.verdict import Effect, Verdict

CLAIM = Claim("This coin is fair", precondition="the coin is tossed")


def judge(table: pd.DataFrame) -> Verdict:
    heads, tosses = int(table.heads.sum()), len(table)
    p = share_p(heads, tosses)
    effect = Effect("share of heads", share_interval(heads, tosses), p)
    return Verdict(p >= 0.05, effect, f"{heads} of {tosses} tosses show heads.", table.value_counts().reset_index())


def figure(table: pd.DataFrame) -> Figure:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    ax.plot(table.heads)
    return figure
'''
TEST = """import pandas as pd

from workbench.claims import toy


def test_a_coin_with_two_heads_is_not_fair():
    assert toy.judge(pd.DataFrame({"heads": [1] * 12})).holds is False
    assert toy.judge(pd.DataFrame({"heads": [0, 1] * 6})).holds is True
"""
CELLS = (
    "import pandas as pd\nfrom workbench.claims import toy\nfrom workbench.lab import open_session\n"
    "session = open_session('toy', globals())\ntable = session.table(pd.DataFrame({'heads': [1] * tosses}))",
    "session.figure(toy.figure(table), 'toy')",
    "session.verdict(toy.judge(table))",
)


@pytest.fixture
def checkout(tmp_path):
    """A copy of the folders that a study needs, with the four files of the toy study."""
    for name in ("workbench", "studies", "notebooks"):
        shutil.copytree(CHECKOUT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".workbench").touch()
    parameters = new_code_cell("tosses: int = 4  # of the coin", metadata={"tags": ["parameters"]})
    book = new_notebook(cells=[new_markdown_cell("# A coin"), parameters, *map(new_code_cell, CELLS)])
    book.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    (tmp_path / "studies" / "toy.yaml").write_text(QUESTION)
    nbformat.write(book, tmp_path / "notebooks" / "toy.ipynb")
    (tmp_path / "workbench" / "claims" / "toy.py").write_text(CLAIM)
    (tmp_path / "tests" / "claims").mkdir(parents=True)
    (tmp_path / "tests" / "claims" / "test_toy.py").write_text(TEST)
    return tmp_path


@pytest.mark.slow
def test_four_files_add_a_study(checkout):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WORKBENCH_", "MLFLOW_"))}
    environment |= {"PYTHONPATH": str(checkout), "WORKBENCH_ROOT": str(checkout)}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=checkout, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "12 of 12 tosses show heads" in run("workbench.cli", "study", "toy")
    output = run("workbench.cli", "claims", "toy")
    assert "Does not hold" in output and "12 of 12 tosses show heads" in output
    assert "reuse run" in run("workbench.cli", "study", "toy", "--dry-run")
    assert "1 passed" in run("pytest", "-q", "--rootdir", str(checkout), "tests/claims/test_toy.py")
