"""The commands that compare trainings."""

from typing import Annotated, Optional

import typer

from workbench.cli.app import app, pairs

COMPARE_EXAMPLES = """\b
Examples:
  workbench compare large_batch
  workbench compare large_batch --tag arm=NF+AGC --equal samples --curves curves.pdf
  workbench compare --filter "params.batch_size = '256' and metrics.failed = 0" --csv table.csv
  workbench compare clipping_search --role search --parallel search.png
"""
DIFF_EXAMPLES = """\b
Examples:
  workbench diff 8b8b395a 03c1f2aa       two trainings, or two executions of a notebook
  workbench diff 5f0a91c2 77ab03de       two groups of seeds
"""


@app.command(epilog=COMPARE_EXAMPLES)
def compare(
    what: Annotated[
        Optional[list[str]],
        typer.Argument(
            metavar="WHAT", help="Studies, or trainings by the first characters of their run ids. Default: all."
        ),
    ] = None,
    tags: Annotated[
        Optional[list[str]],
        typer.Option("--tag", metavar="NAME=VALUE", help="Keep only trainings with this tag. Repeat for several."),
    ] = None,
    only: Annotated[
        Optional[str],
        typer.Option("--filter", metavar="TEXT", help="Keep only trainings that pass this filter, in MLflow's syntax."),
    ] = None,
    role: Annotated[
        Optional[str], typer.Option(metavar="screen|search|confirm", help="Keep only trainings with this role.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Compare the quick trainings, which are demonstrations.")
    ] = False,
    equal: Annotated[
        Optional[str],
        typer.Option(
            metavar="seconds|samples", help="Compare accuracy at equal compute: the largest that all trainings reached."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="Number of rows to print. 0 prints all.")] = 30,
    csv: Annotated[Optional[str], typer.Option(metavar="FILE", help="Write the whole table to this .csv file.")] = None,
    curves: Annotated[
        Optional[str],
        typer.Option(metavar="FILE", help="Draw learning curves with bands into this .png, .svg or .pdf file."),
    ] = None,
    parallel: Annotated[
        Optional[str],
        typer.Option(metavar="FILE", help="Draw parallel coordinates into this .png, .svg or .pdf file."),
    ] = None,
) -> None:
    """Compare trainings, grouped over seeds and ranked.

    Groups tie if the 95 % interval of their difference from the best group contains zero.
    """
    from workbench.cli.comparison_table import show_comparison
    from workbench.cli.terminal import Terminal
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
    show_comparison(comparison, Terminal(200), top)
    if csv is not None:
        summary.to_csv(comparison, csv)
    if curves is not None:
        from workbench.lab.compare.figures import curves_figure, save

        x = "seconds" if equal == "seconds" else "samples_seen"
        save(curves_figure(comparison, selection.curves(store, comparison.rows.run_id), x), curves)
    if parallel is not None:
        from workbench.lab.compare.figures import parallel_figure, save

        save(parallel_figure(comparison), parallel)
    pages = "" if store.uri.startswith("http") else " (first run: workbench ui)"
    print(f"In MLflow{pages}:\n  {summary.address(store, comparison, mode)}")


@app.command(epilog=DIFF_EXAMPLES)
def diff(
    a: Annotated[
        str,
        typer.Argument(metavar="A", help="A run id or its first characters, or a group's id from column `config`."),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The run or group to compare with, of the same kind.")],
) -> None:
    """Show how two runs differ in settings and results.

    Compares two trainings, two groups of seeds, or two executions of a notebook. `workbench compare` prints the ids
    of groups in its column `config`.
    """
    from workbench.cli.diff_table import show_diff
    from workbench.cli.terminal import Terminal
    from workbench.lab.compare.diff import diff as compare_two
    from workbench.lab.store.client import Store

    show_diff(compare_two(Store(), a, b), Terminal(160))
