"""Notebooks from outside. Evidence: each damage that a fuzz test found is refused with a sentence."""

import json

import pytest

from workbench.errors import WorkbenchError
from workbench.lab.studies.notebook_file import code_cells
from workbench.lab.studies.parameters import Parameter, read_parameters

GOOD = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["n: int = 3  # number"]}
BROKEN = {
    "no cell type": {"source": "x"},
    "no source": {"cell_type": "code"},
    "a number as source": {"cell_type": "code", "source": 3},
    "numbers as source": {"cell_type": "code", "source": [3]},
    "tags of another type": GOOD | {"metadata": {"tags": None}},
    "metadata of another type": GOOD | {"metadata": []},
    "a cell of another type": 3,
}
LINES = {
    "attribute": "x.y: int = 3",
    "element": "x[0]: int = 3",
    "no literal": "x: dict = {[]: 1}",
    "long": "x = " + "a" * 5000,
    "several lines": "x = [\n1]",
    "deep": "x: int = " + "-" * 50_000 + "1",
    "nul": "x: int = 3\0",
    "a number as type": "x: 3 = 3",
    "no number": "x: int = 0777",
}


def notebook(folder, *cells):
    file = folder / "mine.ipynb"
    file.write_text(json.dumps({"cells": list(cells)}))
    return file


@pytest.mark.parametrize("kind", BROKEN)
def test_a_cell_of_another_form_is_refused_with_its_place(tmp_path, kind):
    file = notebook(tmp_path, GOOD, BROKEN[kind])
    for read in (code_cells, read_parameters):
        with pytest.raises(WorkbenchError, match=r"mine\.ipynb.*cells\.1"):
            read(file)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff\xfe", b'{"cells": 3}', b"[" * 100_000, b'{"cells": [{"source": "\\ud800"}]}']
)
def test_a_file_that_is_no_notebook_is_refused(tmp_path, content):
    (tmp_path / "mine.ipynb").write_bytes(content)
    with pytest.raises(WorkbenchError, match=r"mine\.ipynb") as error:
        code_cells(tmp_path / "mine.ipynb")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("kind", LINES)
def test_a_line_that_is_no_parameter_is_refused_in_one_line(tmp_path, kind):
    with pytest.raises(WorkbenchError) as error:
        for parameter in read_parameters(notebook(tmp_path, GOOD | {"source": LINES[kind]})).values():
            parameter.check(parameter.default)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("annotation", ["Literal[[1]]", "dict[int]", "-" * 50_000 + "1", "Literal[1.5]", "None[int]"])
def test_an_annotation_that_is_no_type_is_refused(annotation):
    with pytest.raises(WorkbenchError) as error:
        Parameter("x", annotation, 3, "").check([3])
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
