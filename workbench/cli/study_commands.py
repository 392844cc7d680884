"""Studies, what came of them, and what was trained elsewhere."""

import sys
from typing import Annotated, Optional

import typer

from workbench.cli.app import Set, app, pairs
from workbench.errors import WorkbenchError, unknown


@app.command()
def study(
    specs: Annotated[
        Optional[list[str]],
        typer.Argument(metavar="[SPEC]...", help="Study files, or names in studies/. None: the tour, in quick form."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The same study in seconds, on the embedded data; its verdict is a DEMO.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every study in studies/.")] = False,
    rerun: Annotated[
        Optional[str],
        typer.Option(
            metavar="failed|stale|all",
            help="Of what to execute, only the failed, or only the stale; or all, finished ones too. "
            "Finished trainings are reused in any case.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run and why, what is reused, how long; then stop.")
    ] = False,
    plan_file: Annotated[
        Optional[str],
        typer.Option(
            "--plan",
            metavar="FILE",
            help="Write the trainings that are missing there, as pure data, and run none: "
            "`python -m workbench.training FILE` runs them where only torch is, `workbench import` brings them back.",
        ),
    ] = None,
    executor: Annotated[
        Optional[str],
        typer.Option(help="Where trainings run: inline, processes or ray. None: processes for several workers."),
    ] = None,
    workers: Annotated[
        Optional[int], typer.Option(help="Trainings at a time. None: one a GPU; without GPUs one, inline.")
    ] = None,
    gpus: Annotated[Optional[float], typer.Option(help="GPUs of one training, 0 to 1, e.g. 0.5.")] = None,
    threads: Annotated[Optional[int], typer.Option(help="Threads of one training. None: an equal part.")] = None,
    parameters: Set = None,
) -> None:
    """Run studies: each executes a notebook as a run of the store. What is finished is reused."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    if specs and everything:
        raise WorkbenchError("give study names or --all, not both.")
    tour = not specs and not everything
    if tour:
        console.print("The tour: every question once, in quick form.", highlight=False)
    if parameters and (not specs or len(specs) > 1):
        raise WorkbenchError("-p sets parameters of one study: name it, e.g. `study large_batch -p clip=0.1`.")

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
        rest = "" if missing else ": none is missing, so the study itself is what remains to be run, here"
        console.print(f"{plan_file}: {len(missing)} trainings{rest}", highlight=False)
        return
    if not show_results(run_and_show(executions, store, choice, console), store, console):
        raise typer.Exit(1)


@app.command()
def claims(
    which: Annotated[
        Optional[list[str]],
        typer.Argument(
            metavar="[CLAIM]...",
            help="Numbers or studies, slow_start, protocols and race too, each with its details; without: all claims.",
        ),
    ] = None,
    where: Annotated[
        str, typer.Option("--from", help="auto, store or docs: the newest full runs, or the committed tables.")
    ] = "auto",
    export: Annotated[
        bool,
        typer.Option(
            "--export",
            help="Write the store's tables to docs/results, figures to docs/figures, verdicts into the README.",
        ),
    ] = False,
    csv: Annotated[Optional[str], typer.Option(help="Write the verdicts to this file, too.")] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Below: every two arms beside each other, over seeds; p not adjusted.")
    ] = False,
) -> None:
    """Judge the paper's claims again, from the tables that the studies left; p-values adjusted over them (Holm)."""
    from rich.console import Console

    from workbench.claims.judging import export as write
    from workbench.claims.judging import judged, results_folder
    from workbench.claims.registry import chosen
    from workbench.cli.benchmarks import write_readme
    from workbench.cli.claims_table import as_markdown, as_table, show_claims, show_pairs

    if where not in ("auto", "store", "docs"):
        raise unknown("source of evidence", where, ("auto", "store", "docs"))
    if csv:
        from workbench.files import target_path, write_whole

        target = target_path(csv, (".csv",))
    shown = chosen(which)
    family = dict.fromkeys([*chosen(), *shown])  # p-values are adjusted over all claims, however few are shown
    judged_claims = [one for one in judged(list(family), where=where) if one.claim in shown]
    console = Console(width=None if sys.stdout.isatty() else 200)
    show_claims(judged_claims, console, details=bool(which))
    if pairs:
        show_pairs(judged_claims, console)
    if csv:
        table = as_table(judged_claims)
        write_whole(target, lambda part: table.to_csv(part, index=False))
    if export:
        for file in write(judged_claims, results_folder()):
            print(f"written: {file}")
        readme = results_folder().parent.parent / "README.md"
        write_readme(readme, as_markdown(judged(chosen(), where="docs")), "claims")
        print(f"written: the table in {readme}")


@app.command("import")
def import_(
    source: Annotated[
        str, typer.Argument(metavar="DIR|TAR", help="What `python -m workbench.training --out DIR` wrote.")
    ],
) -> None:
    """Put the results of a detached run into the store, as if its trainings had been run here."""
    from tqdm import tqdm

    from workbench.lab.jobs.import_results import import_results
    from workbench.lab.store.client import Store

    with tqdm(desc="importing", unit="run", leave=False, disable=not sys.stderr.isatty()) as bar:

        def refresh_bar(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        imported = import_results(source, Store(), refresh_bar)
    for line in (*imported.damaged, *imported.failed):
        print(line, file=sys.stderr)
    print(imported)
    if imported.other_code:
        print(f"{imported.other_code} of them are of other code than this: no study asks for them.")
    if imported.damaged:
        raise typer.Exit(1)
