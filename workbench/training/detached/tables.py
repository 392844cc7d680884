"""Read the tables of a detached run, each of one training. They come from outside, so size and columns are checked."""

import re
from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype
from pyarrow import parquet

from workbench.errors import WorkbenchError
from workbench.files import sha256
from workbench.training.detached.records import Record, numbered

CELLS = 2 * 10**8  # rows times columns of one table: 1.6 GB of memory
NUMBERS = {  # by table the columns of numbers that its figure and its readers need
    "agc": ("step",),
    "signal": ("step", "block", "var", "mean_sq", "residual_var", "grad_var"),
    "curvature": ("step", "sharpness", "lr_x_sharpness", "limit", "noise_scale", "noise_low", "noise_high"),
}


def table_file(folder: Path, key: str, name: str) -> Path:
    """Return the file of a training's table."""
    return folder / "tables" / key / f"{name}.parquet"


def tables_of(folder: Path, record: Record) -> dict[str, pd.DataFrame]:
    """Read the tables of a training.

    Args:
        folder: The folder of the run.
        record: The line of the training.

    Returns:
        {name: table}, as the training measured it.

    Raises:
        WorkbenchError: For a table that is missing, damaged or too large, or lacks a column.
    """
    tables = {}
    for name, digest in record.tables.items():
        file = table_file(folder, record.result.key, name)
        if file.is_symlink() or not file.is_file() or sha256(file) != digest:
            raise WorkbenchError(f"{file.relative_to(folder)} is missing or damaged. Copy it again.")
        tables[name] = _checked(name, _table(file, folder), file.relative_to(folder))
    return tables or _first_edition_tables(folder, record.result.key)


def _table(file: Path, folder: Path, **filters) -> pd.DataFrame:
    place = file.relative_to(folder)
    try:
        about = parquet.read_metadata(file)
        cells = about.num_rows * about.num_columns
        if cells <= CELLS:
            return pd.read_parquet(file, **filters)
    except Exception as error:  # a damaged file can raise anything
        cause = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise WorkbenchError(f"{place} is no table of parquet ({cause}). Copy it again.") from error
    raise WorkbenchError(f"{place} must have at most {CELLS:,} cells, got {cells:,}. Copy it again.")


def _checked(name: str, table: pd.DataFrame, place: Path) -> pd.DataFrame:
    needed = NUMBERS.get(name, ()) if len(table) else ()  # a training that diverged at once measured nothing
    missing = [c for c in needed if c not in table or not is_numeric_dtype(table[c])]
    if missing:
        raise WorkbenchError(f"{place} must have the columns of numbers {', '.join(missing)}. Copy it again.")
    return table


# ---- folders of the first edition: files of at most 16 MiB, and one table holds the rows of all trainings


def _first_edition_tables(folder: Path, key: str) -> dict[str, pd.DataFrame]:
    tables = {}
    for name in sorted({re.sub(r"-\d+$", "", file.stem) for file in folder.glob("[!.]*.parquet")} - {"history"}):
        parts = [_table(file, folder, filters=[("key", "=", key)]) for file in numbered(folder, f"{name}.parquet")]
        table = pd.concat(parts, ignore_index=True)
        if len(table):
            tables[name] = _checked(name, table.drop(columns="key"), Path(f"{name}.parquet"))
    return tables
