"""Folders of the workbench: its root, its package and its data.

The root is the first of these folders:

1. the folder that WORKBENCH_ROOT names;
2. the nearest folder at or above the working directory that holds the file `.workbench`;
3. the nearest such folder above this package (a checkout that is installed in place).
"""

from pathlib import Path

from workbench import environment
from workbench.errors import WorkbenchError

MARKER = ".workbench"


def root() -> Path:
    """Return the absolute path of the workbench's root folder.

    Raises:
        WorkbenchError: If no root exists, or WORKBENCH_ROOT is not a folder.
    """
    named = environment.folder("WORKBENCH_ROOT")
    if named is not None:
        if not named.is_dir():
            raise WorkbenchError(
                f"WORKBENCH_ROOT must be an existing folder, got {named}. Create it, or unset the variable."
            )
        return named.resolve()
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if (folder / MARKER).is_file():
                return folder
    raise WorkbenchError(
        f"no workbench found in {Path.cwd()} or above. Change into a checkout, set WORKBENCH_ROOT to one, "
        f"or run `touch {MARKER}` to use this folder."
    )


def import_folder() -> Path:
    """Return the folder that another process needs in PYTHONPATH to import this package."""
    return Path(__file__).resolve().parents[1]


def data_folder() -> Path:
    """Return the folder of the data sets: WORKBENCH_DATA, or else `data/` under the root."""
    named = environment.folder("WORKBENCH_DATA")
    return named.resolve() if named is not None else root() / "data"
