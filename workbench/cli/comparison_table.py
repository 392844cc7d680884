"""Prints a comparison."""

from workbench.lab.compare.summary import as_text, verdict
from workbench.lab.compare.table import Comparison


def show_comparison(comparison: Comparison, console, limit: int | None = None) -> None:
    """Print warnings, verdict, table and notes.

    Args:
        comparison: What to print.
        console: A rich console.
        limit: Largest number of rows. None or 0 prints all.
    """
    from rich.markup import escape
    from rich.table import Table

    for warning in comparison.warnings:
        console.print(f"[bold yellow]Warning:[/] {escape(warning)}", highlight=False)
    console.print(f"[bold]{escape(verdict(comparison))}[/]", highlight=False, soft_wrap=True)
    text, printed = as_text(comparison), Table(box=None, pad_edge=False, header_style="bold")
    left = {"arm", "model", "data", "role", "config"}
    for name in text:
        printed.add_column(name, justify="left" if name in left else "right", no_wrap=name not in left)
    for row in text.head(limit or len(text)).itertuples(index=False):
        printed.add_row(*map(escape, row))
    console.print(printed, highlight=False)
    if limit and len(text) > limit:
        console.print(f"... and {len(text) - limit} more. --top 0 prints all, --csv FILE keeps all.", highlight=False)
    for note in comparison.notes:
        console.print(note, markup=False, highlight=False, style="dim", soft_wrap=True)
