"""The cells of a notebook's file, which comes from outside: validated before anything uses them."""

from pathlib import Path

from pydantic import BaseModel, ValidationError

from workbench.bounded_json import SIZE, read
from workbench.errors import WorkbenchError, shown, unknown


class _Metadata(BaseModel):
    tags: list[str] = []


class _Cell(BaseModel):
    cell_type: str
    source: str | list[str]
    metadata: _Metadata = _Metadata()

    @property
    def text(self) -> str:
        return "".join(self.source)


class _Notebook(BaseModel):
    cells: list[_Cell]


def code_cells(notebook: Path) -> list[str]:
    """Return the sources of a notebook's code cells.

    Raises:
        WorkbenchError: If the file is missing, or is not a notebook.
    """
    return [cell.text for cell in _read(notebook).cells if cell.cell_type == "code"]


def parameters_cell(notebook: Path) -> str:
    """Return the source of the cell with the tag `parameters`.

    Raises:
        WorkbenchError: If the file or the cell is missing, or the file is not a notebook.
    """
    for cell in _read(notebook).cells:
        if "parameters" in cell.metadata.tags:
            return cell.text
    raise WorkbenchError(
        f"{notebook.name} has no cell with the tag `parameters`. Add this tag to the cell that sets its parameters."
    )


def _read(notebook: Path) -> _Notebook:
    try:
        exists = notebook.is_file()
    except OSError:  # such as a name that is too long
        exists = False
    if not exists:
        raise unknown("notebook", notebook.name, [f.name for f in notebook.parent.glob("*.ipynb")], given=notebook)
    content = read(notebook, longest=SIZE, finite=False)  # its pictures are long strings
    try:
        return _Notebook.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        cause = shown(f"{where}: {first['msg']}" if where else first["msg"], quote=False)
    raise WorkbenchError(f"{notebook} is not a notebook ({cause}). Open it in JupyterLab and save it again.")
