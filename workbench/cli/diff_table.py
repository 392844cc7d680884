"""Two runs side by side on the terminal."""

import math

from workbench.lab.compare.diff import Diff, Side
from workbench.lab.compare.table import words


def show_diff(found: Diff, console) -> None:
    """Prints both tables, the seeds and their difference."""
    from rich.table import Table

    def heading(side: Side) -> str:
        name = side.runs[0].name
        return f"{side.name} ({len(side.runs)} trainings)" if side.kind == "group" else f"{name}\n{side.name[:8]}"

    for warning in found.warnings:
        console.print(f"[bold yellow]Warning:[/] {warning}", highlight=False)
    for title, table in (("what differs", found.settings), ("results", found.results)):
        printed = Table(box=None, pad_edge=False, header_style="bold")
        for name in (title, heading(found.a), heading(found.b)):
            printed.add_column(name, overflow="fold")
        for row in table.itertuples(index=False):
            printed.add_row(*row)
        console.print(printed, highlight=False, markup=False)
        if table.empty:
            console.print("nothing", highlight=False)
        console.print()
    if found.interval is not None:
        console.print(sentence(found), highlight=False, soft_wrap=True)


def sentence(found: Diff) -> str:
    """The paired difference of two groups in words."""
    if found.interval.n == 0:
        return "They share no seed: there are no pairs to compare."
    seeds = ", ".join(f"{seed:g}" for seed in found.seeds.seed)
    said = f"{words(found.metric)}, first minus second, over {found.interval.n} shared seeds ({seeds}): "
    if math.isnan(found.interval.low):
        return f"{said}{100 * found.interval.mean:+.2f} points; one pair has no interval, so they are not ranked."
    bounds = f"[{100 * found.interval.low:+.2f}, {100 * found.interval.high:+.2f}]"
    tie = found.interval.low <= 0 <= found.interval.high
    return f"{said}{100 * found.interval.mean:+.2f} points {bounds}{': a tie' if tie else ''}."
