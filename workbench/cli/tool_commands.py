"""Around the work: benchmarks, the doctor, and the two pages."""

import sys
from typing import Annotated, Optional

import typer

from workbench.cli.app import app
from workbench.errors import unknown


@app.command()
def bench(
    names: Annotated[
        Optional[list[str]], typer.Argument(metavar="[NAME]...", help="Programs of benchmarks/. None: all of them.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[
        Optional[int],
        typer.Option(min=1, help="Turns of each candidate, for a quick look that is not kept."),
    ] = None,
    readme: Annotated[bool, typer.Option("--readme", help="Only put the kept rows into the README's table.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Name the programs and stop.")] = False,
) -> None:
    """Measure speed and memory beside the peer, in turns; rows go to docs/results/benchmarks/.

    Rows beside timm need timm 1.0.31 in the environment; those beside torch alone run without it.
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
    from workbench.training.setup import pick_device

    pick_device(device)
    failed = benchmarks.run(names or [], device, rounds, lambda line: print(line, flush=True))
    if failed:
        print(f"workbench: {', '.join(failed)} failed, see above; the others are kept.", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def doctor(
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what was found; without it, only say what would be done.")
    ] = False,
    moved: Annotated[
        bool,
        typer.Option("--moved", help="This store was moved or copied here, and nobody uses it."),
    ] = False,
) -> None:
    """Find what a crash left: processes, runs, points, trials, files. Exit code 1 where something is left to mend."""
    from workbench.cli.doctor_report import report

    if not report(fix, moved, lambda line: print(line, flush=True)):
        raise typer.Exit(1)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="The port.")] = 5000,
    host: Annotated[str, typer.Option(help="The address to listen on; loopback unless told otherwise.")] = "127.0.0.1",
    allowed_hosts: Annotated[
        Optional[str],
        typer.Option(help="Names under which others reach it, comma-separated, when --host is not loopback."),
    ] = None,
) -> None:
    """Open the MLflow page on the store."""
    print("Starting the page ...", flush=True)
    from workbench.cli.serve import serve_ui

    raise typer.Exit(serve_ui(host, port, lambda line: print(line, flush=True), allowed_hosts))


@app.command()
def lab(
    port: Annotated[int, typer.Option(help="The port.")] = 8888,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
) -> None:
    """Open JupyterLab at the notebooks."""
    from workbench.cli.serve import serve_lab

    raise typer.Exit(serve_lab(port, browser))
