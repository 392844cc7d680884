"""Parameters cells and execution. Evidence: the mistakes people make, and a notebook run in a kernel."""

import json
import re
import subprocess
import sys

import pytest
from nbformat import v4
from support.notebooks import notebook

from workbench.errors import WorkbenchError
from workbench.lab.executors.context import Context
from workbench.lab.executors.lifetime import whoami
from workbench.lab.studies.notebook import main
from workbench.lab.studies.parameters import check_names, read_parameters
from workbench.lab.studies.report import arranged, page

CELL = """data: str = "mnist5k"  # which images
trials: int = 8  # how many
clip: "float | Range" = {"low": 0.002, "high": 0.64, "log": True}  # AGC's threshold
seeds: "list[int]" = [0, 1]
train_size: "int | None" = None  # all
"""


@pytest.fixture
def knobs(tmp_path):
    return read_parameters(notebook(tmp_path / "n.ipynb", CELL))


def test_names_types_defaults_and_comments(knobs):
    assert list(knobs) == ["data", "trials", "clip", "seeds", "train_size"]
    assert (knobs["trials"].annotation, knobs["trials"].default, knobs["trials"].comment) == ("int", 8, "how many")
    assert knobs["clip"].default["high"] == 0.64


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("trials", "4", 4), ("clip", "0.1", 0.1), ("clip", "1e-3", 0.001), ("clip", "{low: 0.1, high: 1.0}", {"low": 0.1, "high": 1.0}),
     ("seeds", "[3, 4]", [3, 4]), ("train_size", "null", None), ("train_size", "100", 100), ("data", "123", "123"), ("clip", "1", 1)],
)  # fmt: skip
def test_texts_become_values(knobs, name, text, value):
    assert knobs[name].parse(text) == value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("trials", "many", "must be of type int: for example 8"), ("clip", "1e-3", r"YAML reads 1e-3 as text: write 0\.001"),
     ("clip", {"low": 1.0, "hihg": 2.0}, "unknown key of the range `clip` 'hihg': did you mean 'high'"),
     ("clip", {"low": 2.0, "high": 1.0}, "a range needs low"), ("clip", {"low": 1.0}, r"`clip\.high` \(=None\) must be a number"),
     ("seeds", 3, r"must be of type list\[int\]"), ("seeds", [], r"`seeds` \(=\[\]\) must have at least one entry: for example \[0, 1\]"), ("trials", 2.5, "must be of type int"), ("data", 5, "must be of type str")],
)  # fmt: skip
def test_values_that_do_not_fit_are_refused_with_the_cure(knobs, name, value, message):
    with pytest.raises(WorkbenchError, match=message):
        knobs[name].check(value)


def test_an_unknown_parameter_names_the_nearest(knobs):
    with pytest.raises(WorkbenchError, match="unknown parameter in -p 'cilp': did you mean 'clip'"):
        check_names(["cilp"], knobs, "-p")


@pytest.mark.parametrize("line", ["x = 3", "x: int", "import os", "x: int = len('a')"])
def test_a_line_that_is_no_parameter_is_refused(tmp_path, line):
    with pytest.raises(WorkbenchError, match="must have the form"):
        read_parameters(notebook(tmp_path / "n.ipynb", line))


def test_a_missing_notebook_or_cell(tmp_path):
    notebook(tmp_path / "large_batch.ipynb", "x: int = 1")
    with pytest.raises(WorkbenchError, match=r"did you mean 'large_batch\.ipynb'"):
        read_parameters(tmp_path / "large_bach.ipynb")
    (tmp_path / "bare.ipynb").write_text(json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    with pytest.raises(WorkbenchError, match="no cell with the tag `parameters`"):
        read_parameters(tmp_path / "bare.ipynb")
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(WorkbenchError, match="is not a notebook"):
        read_parameters(tmp_path / "broken.ipynb")


def run(source, target, parameters):
    command = [sys.executable, "-m", "workbench.lab.studies.notebook", str(source), str(target), json.dumps(parameters)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_notebook_runs_with_its_parameters_and_leaves_a_page_that_needs_nothing_else(tmp_path):
    source = notebook(
        tmp_path / "n.ipynb", "x: int = 1", "import matplotlib.pyplot as plt\nplt.plot([1, x])\nprint('x is', x)"
    )
    done = run(source, tmp_path / "out.ipynb", {"x": 42})
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out.html").read_text()
    assert "x is 42" in page and "data:image/png;base64" in page
    assert not [tag for tag in ('src="http', "src='http", 'href="http://cdn', 'href="https://cdn') if tag in page]


def test_a_failing_cell_ends_with_its_error_and_keeps_what_ran(tmp_path):
    source = notebook(tmp_path / "n.ipynb", "x: int = 1", "print('before')", "raise ValueError('the rule')")
    done = run(source, tmp_path / "out.ipynb", {})
    assert done.returncode == 1
    assert "ValueError: the rule" in done.stderr
    assert "before" in (tmp_path / "out.html").read_text()


def cells_of(text):
    """What a reader of the page meets, in order: headings, boxes, folds, figures."""
    marks = {"<h1": "title", 'class="failed"': "failed", "celltag_verdict": "verdict", "celltag_figure": "figure"}
    marks |= {"<summary>": "fold", "<img": "image", "The headline": "headline", "<h2": "heading", "<table": "table"}
    body = text[text.index("<main") :]
    positions = sorted((at.start(), name) for mark, name in marks.items() for at in re.finditer(re.escape(mark), body))
    return [name for _, name in positions]


VERDICT = "**Holds.** The headline\n\n| arm | points |\n| --- | --- |\n| NF | 7.2 |"


def executed(*cells):
    """A notebook as papermill leaves it: a title, then pairs (source, output), of which some are figures."""
    notebook_cells = [v4.new_markdown_cell("# Title\n\n**Question.** Does it?")]
    for tag in ("parameters", "injected-parameters"):
        notebook_cells.append(v4.new_code_cell("x: int = 1", metadata={"tags": [tag]}))
    for source, kind in cells:
        data = {"image/png": "iVBORw0KGgo=", "text/markdown": VERDICT, "text/plain": "a table"}[kind]
        notebook_cells.append(v4.new_code_cell(source, outputs=[v4.new_output("execute_result", {kind: data})]))
    times = {"input_path": "notebooks/mine.ipynb", "start_time": "2026-01-02T03:04:05.678901+00:00", "duration": 61.2}
    return v4.new_notebook(cells=[*notebook_cells, v4.new_markdown_cell("## Later")], metadata={"papermill": times})


def test_the_page_opens_with_question_verdict_and_the_figure_of_its_name_code_folded():
    made = executed(
        ("session.table(t)", "text/plain"),
        ('session.figure(f, "mine")', "image/png"),
        ('session.figure(f, "other")', "image/png"),
        ("session.verdict(v)", "text/markdown"),
    )
    html = page(made)
    order = cells_of(html)
    assert order[:6] == ["title", "verdict", "headline", "table", "figure", "image"]
    assert order.count("image") == 2 and order.count("headline") == 1  # moved, not copied
    assert order[6:] == ["fold", "fold", "fold", "fold", "fold", "image", "fold", "heading"]
    assert "Executed 2026-01-02 03:04 UTC, 61 s" in html
    assert '<details class="code">' in html and '<details class="code" open' not in html
    assert "<summary>parameters of this run</summary>" in html
    assert "<script" not in html
    assert len(made.cells) == 8 and made.cells[-2].outputs  # left as found


def test_without_a_figure_of_the_notebooks_name_the_last_one_is_on_top():
    made = executed(('session.figure(f, "a")', "image/png"), ('session.figure(f, "b")', "image/png"))
    assert [bool(cell.outputs) for cell in arranged(made).cells if cell.cell_type == "code"] == [
        True, False, False, True, False,
    ]  # fmt: skip


def test_a_failed_notebooks_page_opens_with_the_error_and_unfolds_its_cell(tmp_path):
    source = notebook(tmp_path / "mine.ipynb", "x: int = 1", "print('before')", "1 < 2\nraise ValueError('a < b')")
    run(source, tmp_path / "out.ipynb", {"x": 2})
    html = (tmp_path / "out.html").read_text()
    assert cells_of(html)[0] == "failed"
    box = html[html.index('class="failed"') :][:300]
    assert "Failed: ValueError: a &lt; b" in box
    anchor = re.search(r'href="#([^"]+)"', box)[1]
    failing = html[html.index(f'id="{anchor}"') :]
    assert failing.index('<details class="code" open') < failing.index("<summary>")
    assert "An Exception was encountered" not in html and html.count('class="failed"') == 1
    assert html.index("before") < html.index("Traceback")


def test_a_page_without_its_verdict_says_so():
    cells = [v4.new_markdown_cell("# Title"), v4.new_code_cell("session.verdict(x)")]
    assert "No verdict: the notebook was stopped" in page(v4.new_notebook(cells=cells))
    assert "No verdict" not in page(v4.new_notebook(cells=cells[:1]))


def test_a_notebook_whose_launcher_died_while_it_began_runs_nothing(tmp_path, monkeypatch):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    launcher = whoami(process.pid)
    process.communicate(b"\n")
    monkeypatch.setenv(*Context("small", "quick", launcher, "0" * 32).environment().popitem())
    monkeypatch.setattr("workbench.lab.studies.notebook._abandon", lambda: None)
    monkeypatch.setattr("workbench.lab.studies.notebook.execute", lambda *_: pytest.fail("it goes on for nobody"))
    assert main(str(notebook(tmp_path / "n.ipynb", CELL)), str(tmp_path / "out.ipynb"), "{}") == 1
