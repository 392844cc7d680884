"""Prints the table of `workbench check`."""

import pandas as pd
from rich.console import Console
from rich.table import Table

SHOWN = {
    "block": "block",
    "path": "module",
    "mean_sq": "mean²",
    "var": "variance",
    "expected_var": "expected",
    "residual_var": "branch",
    "expected_residual_var": "expected",
    "grad_var": "gradient",
    "dead": "dead",
    "verdict": "verdict",
}


def show_blocks(table: pd.DataFrame, console: Console) -> None:
    """Print one row per block or layer, in the order of the network."""
    unit = table.attrs.get("unit", "block")
    shown = Table(box=None, pad_edge=False, header_style="bold")
    columns = [name for name in SHOWN if name in table]
    for name in columns:
        heading = unit if name == "block" else SHOWN[name]
        shown.add_column(heading, justify="left" if name in ("path", "verdict") else "right", no_wrap=True)
    for _, row in table.iterrows():
        shown.add_row(*(_cell(name, row[name], unit) for name in columns))
    console.print(shown, highlight=False)


def _cell(name: str, value: object, unit: str) -> str:
    if name == "block":
        first = "stem" if unit == "block" else "input"
        return first if value == 0 else str(value)
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return ""
    return f"{value:.0%}" if name == "dead" else f"{value:.3g}"
