"""Where things are: the root of the workbench, and its data.

The root is the folder that holds the file `.workbench`: the one that WORKBENCH_ROOT names, else the nearest one
upwards from the working directory, else the nearest one upwards from this package (a checkout installed in place).
"""

import os
from pathlib import Path

from workbench.errors import WorkbenchError

MARKER = ".workbench"


def root() -> Path:
    """The workbench's root folder, absolute."""
    named = os.environ.get("WORKBENCH_ROOT")
    if named:
        folder = Path(named).expanduser().resolve()
        if not folder.is_dir():
            raise WorkbenchError(
                f"WORKBENCH_ROOT (={named}) must be an existing folder: create it, or unset the variable."
            )
        return folder
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if (folder / MARKER).is_file():
                return folder
    raise WorkbenchError(
        f"no workbench found upwards from {Path.cwd()}: change into a checkout, set WORKBENCH_ROOT to one, "
        f"or make this folder one with `touch {MARKER}`."
    )


def import_folder() -> Path:
    """The folder from which this package is imported: what PYTHONPATH must name for another process."""
    return Path(__file__).resolve().parents[1]


def data_folder() -> Path:
    """Where data sets lie: WORKBENCH_DATA, else `data/` under the root."""
    named = os.environ.get("WORKBENCH_DATA")
    return Path(named).expanduser().resolve() if named else root() / "data"
