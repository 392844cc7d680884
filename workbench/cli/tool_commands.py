"""The commands around the work: benchmarks, the doctor, MLflow and JupyterLab."""

import sys
from typing import Annotated, Optional

import typer

from workbench.cli.app import app
from workbench.errors import unknown


@app.command()
def bench(
    names: Annotated[
        Optional[list[str]], typer.Argument(metavar="NAME", help="Programs in benchmarks/. Default: all.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device to measure on: cpu or cuda.")] = "cpu",
    rounds: Annotated[
        Optional[int],
        typer.Option(min=1, help="Turns of each candidate, for a quick look. The rows are then not kept."),
    ] = None,
    readme: Annotated[
        bool, typer.Option("--readme", help="Measure nothing; write the kept rows into the README's table.")
    ] = False,
    listing: Annotated[bool, typer.Option("--list", help="Print the names of the programs and stop.")] = False,
) -> None:
    """Measure speed and memory against other implementations.

    Runs each candidate and its peer in turns. The rows go to docs/results/benchmarks/. Comparisons with timm need
    timm 1.0.31 in the environment; comparisons with torch do not.
    """
    from workbench.cli import benchmarks
    from workbench.paths import root

    if device not in ("cpu", "cuda"):
        raise unknown("device", device, ["cpu", "cuda"])
    if listing:
        print("\n".join(benchmarks.names()))
        return
    if readme:
        benchmarks.write_readme(root() / "README.md", benchmarks.table(benchmarks.results_folder()))
        return
    benchmarks.check_names(names or [])

    from workbench.training.setup import pick_device

    pick_device(device)
    failed = benchmarks.run(names or [], device, rounds, lambda line: print(line, flush=True))
    if failed:
        print(f"workbench: {', '.join(failed)} failed, see above. The rows of the others are kept.", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def doctor(
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what was found. Without it, only print what would be done.")
    ] = False,
    moved: Annotated[
        bool,
        typer.Option("--moved", help="Confirm that this store was moved or copied here, and that nobody uses it."),
    ] = False,
) -> None:
    """Find what a crash left behind, and mend it with --fix.

    Looks at processes, runs, points of metrics, trials and files. The exit code is 1 if something is left to mend.
    """
    from workbench.cli.doctor_report import report

    if not report(fix, moved, lambda line: print(line, flush=True)):
        raise typer.Exit(1)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on. The default is reachable from this machine only.")
    ] = "127.0.0.1",
    allowed_hosts: Annotated[
        Optional[str],
        typer.Option(
            metavar="NAMES", help="With --host: the host names under which others reach this page, separated by commas."
        ),
    ] = None,
) -> None:
    """Serve MLflow's pages on the store until Ctrl-C."""
    print("Starting the server ...", flush=True)
    from workbench.cli.serve import serve_ui

    raise typer.Exit(serve_ui(host, port, lambda line: print(line, flush=True), allowed_hosts))


@app.command()
def lab(
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8888,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
) -> None:
    """Run JupyterLab at the notebooks until Ctrl-C."""
    from workbench.cli.serve import serve_lab

    raise typer.Exit(serve_lab(port, browser))
