"""Trainings and groups of them, side by side."""

import sys
from typing import Annotated, Optional

import typer

from workbench.cli.app import app, pairs


@app.command()
def compare(
    what: Annotated[
        Optional[list[str]],
        typer.Argument(metavar="[WHAT]...", help="Studies, or trainings by the beginning of their run ids. None: all."),
    ] = None,
    tags: Annotated[
        Optional[list[str]], typer.Option("--tag", metavar="NAME=VALUE", help="Only with this tag; may be repeated.")
    ] = None,
    only: Annotated[
        Optional[str], typer.Option("--filter", metavar="TEXT", help="Only what MLflow's filter lets pass.")
    ] = None,
    role: Annotated[Optional[str], typer.Option(metavar="screen|search|confirm", help="Only with this role.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The quick trainings, which are demonstrations.")] = False,
    equal: Annotated[
        Optional[str],
        typer.Option(metavar="seconds|samples", help="Accuracy at the largest compute that all of them reached."),
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="Rows to print; 0: all.")] = 30,
    csv: Annotated[Optional[str], typer.Option(metavar="FILE", help="Keep the whole table.")] = None,
    curves: Annotated[
        Optional[str], typer.Option(metavar="FILE", help="Draw learning curves with bands: .png, .svg or .pdf.")
    ] = None,
    parallel: Annotated[
        Optional[str], typer.Option(metavar="FILE", help="Draw parallel coordinates: .png, .svg or .pdf.")
    ] = None,
) -> None:
    """Compare trainings: grouped over seeds, ranked, and a tie where the seeds do not tell them apart.

    \b
    workbench compare large_batch
    workbench compare large_batch --tag arm=NF+AGC --equal samples --curves curves.pdf
    workbench compare --filter "params.batch_size = '256' and metrics.failed = 0" --csv table.csv
    workbench compare clipping_search --role search --parallel search.png
    """
    from rich.console import Console

    from workbench.cli.comparison_table import show_comparison
    from workbench.lab.compare import selection, summary
    from workbench.lab.compare.table import from_store
    from workbench.lab.store.client import Store

    if csv is not None:
        from workbench.files import target_path

        target_path(csv, (".csv",))
    for file in filter(None, (curves, parallel)):
        from workbench.lab.compare.figures import check_file

        check_file(file)
    store, mode = Store(), "quick" if quick else "full"
    wanted = pairs(tags, "--tag", "arm=NF+AGC")
    comparison = from_store(store, what or [], tags=wanted, filter=only, role=role, mode=mode, equal=equal)
    show_comparison(comparison, Console(width=None if sys.stdout.isatty() else 200), top)
    if csv is not None:
        summary.to_csv(comparison, csv)
    if curves is not None:
        from workbench.lab.compare.figures import curves_figure, save

        x = "seconds" if equal == "seconds" else "samples_seen"
        save(curves_figure(comparison, selection.curves(store, comparison.rows.run_id), x), curves)
    if parallel is not None:
        from workbench.lab.compare.figures import parallel_figure, save

        save(parallel_figure(comparison), parallel)
    pages = "" if store.uri.startswith("http") else " (workbench ui first)"
    print(f"In MLflow{pages}:\n  {summary.address(store, comparison, mode)}")


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A run id or its beginning, or a group's config.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other.")],
) -> None:
    """Set two trainings, two groups of seeds or two executions of a notebook side by side: what differs, and results.

    \b
    workbench diff 8b8b395a 03c1f2aa       two trainings, or two executions: run ids or their beginnings
    workbench diff 5f0a91c2 77ab03de       two groups of seeds, as the column "config" of `compare` names them
    """
    from rich.console import Console

    from workbench.cli.diff_table import show_diff
    from workbench.lab.compare.diff import diff as set_beside
    from workbench.lab.store.client import Store

    show_diff(set_beside(Store(), a, b), Console(width=None if sys.stdout.isatty() else 160))
