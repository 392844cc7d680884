"""Tests of parameters cells, execution and report pages. Evidence: common mistakes, and notebooks in real kernels."""

import json
import os
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
def parameters(tmp_path):
    return read_parameters(notebook(tmp_path / "n.ipynb", CELL))


def test_the_parameters_cell_gives_names_types_defaults_and_comments(parameters):
    assert list(parameters) == ["data", "trials", "clip", "seeds", "train_size"]
    trials = parameters["trials"]
    assert (trials.annotation, trials.default, trials.comment) == ("int", 8, "how many")
    assert parameters["clip"].default["high"] == 0.64


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("trials", "4", 4),
        ("clip", "0.1", 0.1),
        ("clip", "1e-3", 0.001),
        ("clip", "{low: 0.1, high: 1.0}", {"low": 0.1, "high": 1.0}),
        ("seeds", "[3, 4]", [3, 4]),
        ("train_size", "null", None),
        ("train_size", "100", 100),
        ("data", "123", "123"),
        ("clip", "1", 1),
    ],
)
def test_text_is_parsed_to_the_value_that_the_annotation_needs(parameters, name, text, value):
    assert parameters[name].parse(text) == value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("trials", "many", r"`trials`.*\bint\b.*'many'.*\b8\b"),
        ("clip", "1e-3", r"`clip`.*YAML.*1e-3.*write 0\.001"),
        ("clip", {"low": 1.0, "hihg": 2.0}, r"range `clip` 'hihg'.*'high'"),
        ("clip", {"low": 2.0, "high": 1.0}, r"range.*2\.0.*1\.0"),
        ("clip", {"low": 1.0}, r"`clip\.high`.*number.*None"),
        ("seeds", 3, r"`seeds`.*list\[int\].*3.*\[0, 1\]"),
        ("seeds", [], r"`seeds`.*at least one.*\[\].*\[0, 1\]"),
        ("trials", 2.5, r"`trials`.*\bint\b.*2\.5"),
        ("data", 5, r"`data`.*\bstr\b.*5"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_an_example(parameters, name, value, message):
    with pytest.raises(WorkbenchError, match=message):
        parameters[name].check(value)


def test_the_error_for_an_unknown_parameter_names_the_nearest_parameter(parameters):
    with pytest.raises(WorkbenchError, match=r"parameter in -p 'cilp'.*'clip'"):
        check_names(["cilp"], parameters, "-p")


@pytest.mark.parametrize("line", ["x = 3", "x: int", "import os", "x: int = len('a')"])
def test_a_line_that_is_not_a_parameter_is_refused(tmp_path, line):
    with pytest.raises(WorkbenchError, match=re.escape(f"`{line}`")) as error:
        read_parameters(notebook(tmp_path / "n.ipynb", line))
    assert "`name: type = literal" in str(error.value)


def test_a_notebook_that_is_missing_broken_or_without_parameters_is_refused(tmp_path):
    notebook(tmp_path / "large_batch.ipynb", "x: int = 1")
    with pytest.raises(WorkbenchError, match=r"/large_bach\.ipynb'.*'large_batch\.ipynb'"):
        read_parameters(tmp_path / "large_bach.ipynb")
    (tmp_path / "bare.ipynb").write_text(json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    with pytest.raises(WorkbenchError, match=r"bare\.ipynb.*tag `parameters`"):
        read_parameters(tmp_path / "bare.ipynb")
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(WorkbenchError, match=r"broken\.ipynb"):
        read_parameters(tmp_path / "broken.ipynb")


def run(source, target, parameters):
    command = [sys.executable, "-m", "workbench.lab.studies.notebook", str(source), str(target), json.dumps(parameters)]
    environment = os.environ | {"WORKBENCH_ROOT": str(target.parent)}  # takes the traceback of a failing cell
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_notebook_runs_with_its_parameters_and_writes_a_self_contained_page(tmp_path):
    source = notebook(
        tmp_path / "n.ipynb", "x: int = 1", "import matplotlib.pyplot as plt\nplt.plot([1, x])\nprint('x is', x)"
    )
    process = run(source, tmp_path / "out.ipynb", {"x": 42})
    assert process.returncode == 0, process.stderr
    page = (tmp_path / "out.html").read_text()
    assert "x is 42" in page and "data:image/png;base64" in page
    assert not [tag for tag in ('src="http', "src='http", 'href="http://cdn', 'href="https://cdn') if tag in page]


def test_a_failing_cell_ends_the_notebook_with_its_error_and_keeps_earlier_output(tmp_path):
    source = notebook(tmp_path / "n.ipynb", "x: int = 1", "print('before')", "raise ValueError('the rule')")
    process = run(source, tmp_path / "out.ipynb", {})
    assert process.returncode == 1
    assert "ValueError: the rule" in process.stderr
    assert "before" in (tmp_path / "out.html").read_text()


def elements(text):
    """Return the elements of a page in order: headings, boxes, folds, figures."""
    marks = {"<h1": "title", 'class="failed"': "failed", "celltag_verdict": "verdict", "celltag_figure": "figure"}
    marks |= {"<summary>": "fold", "<img": "image", "The headline": "headline", "<h2": "heading", "<table": "table"}
    body = text[text.index("<main") :]
    positions = sorted((at.start(), name) for mark, name in marks.items() for at in re.finditer(re.escape(mark), body))
    return [name for _, name in positions]


VERDICT = "**Holds.** The headline\n\n| arm | points |\n| --- | --- |\n| NF | 7.2 |"


def executed(*cells):
    """Make a notebook as papermill writes it, with a title and cells given as (source, type of output)."""
    notebook_cells = [v4.new_markdown_cell("# Title\n\n**Question.** Does it?")]
    for tag in ("parameters", "injected-parameters"):
        notebook_cells.append(v4.new_code_cell("x: int = 1", metadata={"tags": [tag]}))
    for source, kind in cells:
        data = {"image/png": "iVBORw0KGgo=", "text/markdown": VERDICT, "text/plain": "a table"}[kind]
        notebook_cells.append(v4.new_code_cell(source, outputs=[v4.new_output("execute_result", {kind: data})]))
    times = {"input_path": "notebooks/mine.ipynb", "start_time": "2026-01-02T03:04:05.678901+00:00", "duration": 61.2}
    return v4.new_notebook(cells=[*notebook_cells, v4.new_markdown_cell("## Later")], metadata={"papermill": times})


def test_the_page_starts_with_question_verdict_and_main_figure_and_folds_the_code():
    made = executed(
        ("session.table(t)", "text/plain"),
        ('session.figure(f, "mine")', "image/png"),
        ('session.figure(f, "other")', "image/png"),
        ("session.verdict(v)", "text/markdown"),
    )
    html = page(made)
    order = elements(html)
    assert order[:6] == ["title", "verdict", "headline", "table", "figure", "image"]
    assert order.count("image") == 2 and order.count("headline") == 1  # moved, not copied
    assert order[6:] == ["fold", "fold", "fold", "fold", "fold", "image", "fold", "heading"]
    assert "Executed 2026-01-02 03:04 UTC, 61 s" in html
    assert '<details class="code">' in html and '<details class="code" open' not in html
    assert "<summary>parameters of this run</summary>" in html
    assert "<script" not in html
    assert len(made.cells) == 8 and made.cells[-2].outputs  # unchanged


def test_without_a_figure_of_the_notebooks_name_the_last_figure_is_on_top():
    made = executed(('session.figure(f, "a")', "image/png"), ('session.figure(f, "b")', "image/png"))
    assert [bool(cell.outputs) for cell in arranged(made).cells if cell.cell_type == "code"] == [
        True, False, False, True, False,
    ]  # fmt: skip


def test_the_page_of_a_failed_notebook_starts_with_the_error_and_unfolds_its_cell(tmp_path):
    source = notebook(tmp_path / "mine.ipynb", "x: int = 1", "print('before')", "1 < 2\nraise ValueError('a < b')")
    run(source, tmp_path / "out.ipynb", {"x": 2})
    html = (tmp_path / "out.html").read_text()
    assert elements(html)[0] == "failed"
    box = html[html.index('class="failed"') :][:300]
    assert "Failed: ValueError: a &lt; b" in box
    anchor = re.search(r'href="#([^"]+)"', box)[1]
    failing = html[html.index(f'id="{anchor}"') :]
    assert failing.index('<details class="code" open') < failing.index("<summary>")
    assert "An Exception was encountered" not in html and html.count('class="failed"') == 1
    assert html.index("before") < html.index("Traceback")


def test_the_page_of_a_notebook_that_was_stopped_says_that_it_has_no_verdict():
    cells = [v4.new_markdown_cell("# Title"), v4.new_code_cell("session.verdict(x)")]
    assert "No verdict" in page(v4.new_notebook(cells=cells))
    assert "No verdict" not in page(v4.new_notebook(cells=cells[:1]))


def test_a_notebook_whose_launcher_died_before_it_started_does_not_run(tmp_path, monkeypatch):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    launcher = whoami(process.pid)
    process.communicate(b"\n")
    monkeypatch.setenv(*Context("small", "quick", launcher, "0" * 32).environment().popitem())
    monkeypatch.setattr("workbench.lab.studies.notebook._abandon", lambda: None)
    monkeypatch.setattr("workbench.lab.studies.notebook.execute", lambda *_: pytest.fail("the notebook ran"))
    assert main(str(notebook(tmp_path / "n.ipynb", CELL)), str(tmp_path / "out.ipynb"), "{}") == 1


def test_a_foreign_kernel_of_the_same_name_is_not_used(tmp_path, monkeypatch):
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = ["/bin/false", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Other", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    source = notebook(tmp_path / "n.ipynb", "x: int = 1", "import sys\nprint(sys.executable)")
    process = run(source, tmp_path / "out.ipynb", {})
    assert process.returncode == 0, process.stderr
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    printed = "".join(line for cell in cells for out in cell["outputs"] for line in out.get("text", ""))
    assert printed.strip() == sys.executable
