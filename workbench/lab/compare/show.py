"""A comparison as a person reads it: the printed table, the CSV file, the address of MLflow's page."""

import math
from pathlib import Path

import pandas as pd

from workbench.files import write_whole
from workbench.lab.compare.table import Comparison, words
from workbench.lab.store import Store

LABELS = {"batch_size": "batch", "lr": "peak lr", "weight_decay": "weight decay", "data_digest": "data bytes"}
MOST_BESIDE = 30  # runs that MLflow's page puts side by side


def as_text(found: Comparison) -> pd.DataFrame:
    """The table as it is printed: ranks with "=" where they are shared, intervals, plain numbers."""
    table = found.table
    shared = table["rank"].duplicated(keep=False)
    shown = pd.DataFrame(index=table.index)
    shown["rank"] = [
        "" if math.isnan(rank) else f"{rank:.0f}{'=' if same else ''}"
        for rank, same in zip(table["rank"], shared, strict=True)
    ]
    first, last = table.columns.get_loc("tie") + 1, table.columns.get_loc("seeds")
    for name in table.columns[first:last]:
        shown[LABELS.get(name, name)] = [_plain(name, value) for value in table[name]]
    shown["seeds"] = table.seeds.astype(str)
    shown["failed"] = [str(n) if n else "" for n in table.failed]
    shown[words(found.metric)] = [
        f"{row.mean:.2%}" + ("" if math.isnan(row.low) else f" [{row.low:.2%}, {row.high:.2%}]")
        for row in table[["mean", "low", "high"]].set_axis(["mean", "low", "high"], axis=1).itertuples(index=False)
    ]
    shown["minus best, points"] = [_minus_best(row) for row in table.itertuples()]
    if len(table) > 1 and (table.seeds > 1).any():
        shown.loc[(table.seeds > 1).idxmax(), "minus best, points"] = "best"
    shown["device s"] = ["" if math.isnan(s) else f"{s:,.3g}" for s in table.device_seconds]
    shown["config"] = table.config_id
    return shown


def _minus_best(row) -> str:
    if math.isnan(row.minus_best):
        return ""
    mean, low, high = (round(100 * x, 2) + 0.0 for x in (row.minus_best, row.minus_best_low, row.minus_best_high))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]{'  tie' if row.tie else ''}"  # + 0.0: no minus zero


def _plain(name: str, value) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "none" if name == "clip" else ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show(found: Comparison, console, limit: int | None = None) -> None:
    """Prints the warnings, the table (at most `limit` rows) and how to read it."""
    from rich.markup import escape
    from rich.table import Table

    for warning in found.warnings:
        console.print(f"[bold yellow]Warning:[/] {escape(warning)}", highlight=False)
    text, printed = as_text(found), Table(box=None, pad_edge=False, header_style="bold")
    left = {"arm", "model", "data", "role", "config"}
    for name in text:
        printed.add_column(name, justify="left" if name in left else "right", no_wrap=name not in left)
    for row in text.head(limit or len(text)).itertuples(index=False):
        printed.add_row(*map(escape, row))
    console.print(printed, highlight=False)
    if limit and len(text) > limit:
        console.print(f"... and {len(text) - limit} more: --top 0 shows all, --csv keeps them.", highlight=False)
    for note in found.notes:
        console.print(note, markup=False, highlight=False, style="dim", soft_wrap=True)


def to_csv(found: Comparison, file: str) -> None:
    """Writes the table, plain numbers; accuracies are shares."""
    whole = {name: "Int64" for name in ("rank", "batch_size", "steps") if name in found.table}
    table = found.table.astype(whole).assign(metric=found.metric)
    write_whole(Path(file).expanduser(), lambda part: table.to_csv(part, index=False))


def address(store: Store, found: Comparison, mode: str = "full") -> str:
    """Where MLflow shows these trainings: side by side, or, too many for that, the experiment grouped over seeds."""
    runs = list(found.rows.run_id)
    if len(runs) > MOST_BESIDE:
        return f"{store.experiment_url('trainings', mode)}&viewStateShareKey=seeds"
    return store.compare_url(runs, "trainings", mode)
