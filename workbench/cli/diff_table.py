"""Prints the differences of two runs."""

import math

from workbench.lab.compare.diff import Diff, Side
from workbench.lab.compare.table import words


def show_diff(diff: Diff, console) -> None:
    """Print warnings, both tables, and the difference over shared seeds."""
    from rich.table import Table

    def heading(side: Side) -> str:
        name = side.runs[0].name
        return f"{side.name} ({len(side.runs)} trainings)" if side.kind == "group" else f"{name}\n{side.name[:8]}"

    for warning in diff.warnings:
        console.print(f"[bold yellow]Warning:[/] {warning}", highlight=False)
    for title, table in (("what differs", diff.settings), ("results", diff.results)):
        printed = Table(box=None, pad_edge=False, header_style="bold")
        for name in (title, heading(diff.a), heading(diff.b)):
            printed.add_column(name, overflow="fold")
        for row in table.itertuples(index=False):
            printed.add_row(*row)
        console.print(printed, highlight=False, markup=False)
        if table.empty:
            console.print("nothing", highlight=False)
        console.print()
    if diff.interval is not None:
        console.print(sentence(diff), highlight=False, soft_wrap=True)


def sentence(diff: Diff) -> str:
    """Describe the paired difference of two groups."""
    if diff.interval.n == 0:
        return "They share no seed: there are no pairs to compare."
    seeds = ", ".join(f"{seed:g}" for seed in diff.seeds.seed)
    text = f"{words(diff.metric)}, first minus second, over {diff.interval.n} shared seeds ({seeds}): "
    if math.isnan(diff.interval.low):
        return f"{text}{100 * diff.interval.mean:+.2f} points; one pair has no interval, so they are not ranked."
    bounds = f"[{100 * diff.interval.low:+.2f}, {100 * diff.interval.high:+.2f}]"
    tie = diff.interval.low <= 0 <= diff.interval.high
    return f"{text}{100 * diff.interval.mean:+.2f} points {bounds}{': a tie' if tie else ''}."
