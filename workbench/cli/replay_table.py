"""Prints a replay."""

import math

from rich.console import Console
from rich.table import Table

from workbench.lab.jobs.replay import Replay


def show_steps(replayed: Replay, console: Console) -> None:
    """Print one row per step: the loss, the largest ratio, and its parameter.

    If a fork was trained, its columns follow those of the original.
    """
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("step", justify="right")
    runs = {name: _by_step(replayed, name) for name in replayed.first}
    for name in runs:
        shown.add_column("loss" if name == "original" else f"{name}: loss", justify="right")
        shown.add_column("largest ratio", justify="right")
        shown.add_column("in", no_wrap=True)
    for step in sorted(set().union(*runs.values())):
        shown.add_row(str(step), *(cell for name in runs for cell in runs[name].get(step, ("", "", ""))))
    console.print(shown, highlight=False)


def _by_step(replayed: Replay, name: str) -> dict[int, tuple[str, str, str]]:
    cells = {}
    for row in replayed.steps[replayed.steps.run == name].itertuples():
        ratios = (
            replayed.ratios[(replayed.ratios.run == name) & (replayed.ratios.step == row.step)]
            .set_index("parameter")
            .ratio
        )
        broken = ratios.index[ratios.isna()]
        ratio, parameter = ("not finite", broken[-1]) if len(broken) else (f"{ratios.max():.3g}", ratios.idxmax())
        cells[row.step] = (f"{row.loss:.4g}" if math.isfinite(row.loss) else "not finite", ratio, parameter)
    return cells
