"""The commands that run studies, judge the claims, and import results of other machines."""

import sys
from typing import Annotated, Optional

import typer

from workbench.cli.app import Set, app, pairs
from workbench.errors import WorkbenchError, unknown


@app.command()
def study(
    specs: Annotated[
        Optional[list[str]],
        typer.Argument(metavar="SPEC", help="Study files, or names in studies/. Default: the tour, in quick form."),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Run in seconds on the embedded data. The verdict is then a demonstration (DEMO)."
        ),
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Run every study in studies/.")] = False,
    rerun: Annotated[
        Optional[str],
        typer.Option(
            metavar="failed|stale|all",
            help="Run only the failed executions, only the stale ones, or all, including finished ones. "
            "Finished trainings are always reused. Default: all executions that are not finished.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run and why, what is reused and how long, and stop.")
    ] = False,
    plan_file: Annotated[
        Optional[str],
        typer.Option(
            "--plan",
            metavar="FILE",
            help="Write the missing trainings into this .jsonl file and run nothing. "
            "`python -m workbench.training FILE` runs them on a machine that has only torch. "
            "`workbench import` adds the results here.",
        ),
    ] = None,
    executor: Annotated[
        Optional[str],
        typer.Option(
            help="Where trainings run: inline, processes or ray. Default: processes for several workers, else inline."
        ),
    ] = None,
    workers: Annotated[
        Optional[int],
        typer.Option(help="Trainings at a time. Default: one per GPU. Without GPUs, one inline."),
    ] = None,
    gpus: Annotated[Optional[float], typer.Option(help="GPU share of each training, from 0 to 1, such as 0.5.")] = None,
    threads: Annotated[
        Optional[int], typer.Option(help="CPU threads of each training. Default: an equal share.")
    ] = None,
    parameters: Set = None,
) -> None:
    """Run studies, and reuse what is already finished.

    Each study executes its notebook and records it as a run in the store.
    """
    from workbench.cli.terminal import Terminal

    console = Terminal(160)
    if specs and everything:
        raise WorkbenchError(f"Cannot combine --all with study names, got {', '.join(specs)}. Give one of them.")
    tour = not specs and not everything
    if tour:
        console.print("The tour runs a few studies in quick form.", highlight=False)
    if parameters and (not specs or len(specs) > 1):
        raise WorkbenchError(
            f"-p needs exactly one study, got {len(specs or [])}. Name it, as in `study large_batch -p clip=0.1`."
        )

    from workbench.lab.executors import Choice

    choice = Choice.of(executor, workers, gpus, threads)
    if plan_file is not None:
        from workbench.files import target_path

        target_path(plan_file, (".jsonl",))

    from workbench.lab.studies.spec import all_studies, distinct

    studies = distinct(specs or all_studies())
    if tour:
        studies = sorted((s for s in studies if s.tour), key=lambda s: s.minutes.get("quick", 99))
    overrides = pairs(parameters)
    for s in studies:
        s.executions(quick=quick or tour, overrides=overrides)

    from workbench.cli.progress import run_and_show, show_plan, show_results
    from workbench.lab.store.client import Store
    from workbench.lab.studies.executions import plan

    store = Store()
    if not dry_run:
        store.close_orphans()
    executions = plan(studies, store, quick=quick or tour, overrides=overrides, rerun=rerun)
    show_plan(executions, choice.count, console)
    if dry_run:
        return
    if plan_file is not None:
        from workbench.lab.jobs.offline_plan import plan_trainings

        missing = plan_trainings(executions, plan_file, lambda line: console.print(line, highlight=False))
        rest = "" if missing else ". None are missing: run the study itself, on this machine"
        console.print(f"{plan_file}: {len(missing)} trainings{rest}", highlight=False)
        return
    if not show_results(run_and_show(executions, store, choice, console), store, console):
        raise typer.Exit(1)


@app.command()
def claims(
    which: Annotated[
        Optional[list[str]],
        typer.Argument(
            metavar="CLAIM",
            help="Numbers of claims, or names of studies (also slow_start, protocols and race, which have no number). "
            "Prints their details. Default: all claims, without details.",
        ),
    ] = None,
    where: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="auto|store|docs",
            help="Where the tables come from: the newest full runs in the store, the committed tables in docs/, or "
            "auto: the store, and docs/ where it has no run.",
        ),
    ] = "auto",
    export: Annotated[
        bool,
        typer.Option(
            "--export",
            help="Write tables to docs/results with all confirmations, figures to docs/figures, and the verdicts into "
            "the README.",
        ),
    ] = False,
    csv: Annotated[
        Optional[str], typer.Option(metavar="FILE", help="Also write the verdicts to this .csv file.")
    ] = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="Also compare every pair of arms over seeds. These p-values are not adjusted."),
    ] = False,
) -> None:
    """Judge the paper's claims from the tables of their studies.

    The p-values are adjusted over all testable claims (Holm's method), however few you print.
    """
    from workbench.claims.judging import export as write
    from workbench.claims.judging import export_all, judged, results_folder
    from workbench.claims.registry import chosen
    from workbench.cli.benchmarks import write_readme
    from workbench.cli.claims_table import as_markdown, as_table, show_claims, show_pairs
    from workbench.cli.terminal import Terminal

    if where not in ("auto", "store", "docs"):
        raise unknown("source of evidence", where, ("auto", "store", "docs"))
    if csv:
        from workbench.files import target_path, write_whole

        target = target_path(csv, (".csv",))
    shown = chosen(which)
    family = dict.fromkeys([*chosen(), *shown])  # p-values are adjusted over all claims, however few are printed
    judged_claims = [each for each in judged(list(family), where=where) if each.claim in shown]
    console = Terminal(200)
    show_claims(judged_claims, console, details=bool(which))
    if pairs:
        show_pairs(judged_claims, console)
    if csv:
        table = as_table(judged_claims)
        write_whole(target, lambda part: table.to_csv(part, index=False))
    if export:
        for file in [*write(judged_claims, results_folder()), *export_all(results_folder())]:
            print(f"written: {file}")
        readme = results_folder().parent.parent / "README.md"
        write_readme(readme, as_markdown(judged(chosen(), where="docs")), "claims")
        print(f"written: the table in {readme}")


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR|TAR", help="The folder that `python -m workbench.training --out DIR` wrote, or its tar."
        ),
    ],
) -> None:
    """Add the results of a detached run to the store.

    The store then treats its trainings as if they had run here.
    """
    from workbench.bars import bar
    from workbench.lab.jobs.import_results import import_results
    from workbench.lab.store.client import Store

    with bar(desc="importing", unit="run") as counter:

        def refresh_bar(done: int, total: int) -> None:
            counter.total, counter.n = total, done
            counter.refresh()

        imported = import_results(source, Store(), refresh_bar)
    for line in (*imported.damaged, *imported.failed):
        print(line, file=sys.stderr)
    print(imported)
    if imported.other_code:
        print(f"{imported.other_code} of them come from another version of the code. Studies here will not reuse them.")
    if imported.damaged:
        raise typer.Exit(1)
