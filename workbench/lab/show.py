"""What the launcher shows of studies: the plan, progress while they run, a line for each at the end."""

import time
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from workbench.lab.launcher import Execution, execute
from workbench.lab.store import Store


def show_plan(executions: list[Execution], console: Console) -> None:
    """What runs, what is reused, and how long it may take."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("study", "mode", "plan", "estimate"):
        table.add_column(heading)
    for e in executions:
        table.add_row(
            e.name, e.mode, f"reuse run {e.reuse[:8]}" if e.reuse else "run", "" if e.reuse else _duration(e.seconds)
        )
    console.print(table)
    todo = [e for e in executions if not e.reuse]
    known = [e.seconds for e in todo if e.seconds is not None]
    if todo:
        estimate = _duration(sum(known) if known else None)
        console.print(f"{len(todo)} to run, {len(executions) - len(todo)} reused; about {estimate} in all.\n")
    else:
        console.print("Nothing to run: every execution is in the store already (--rerun repeats them).\n")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not known yet"
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def run_and_show(executions: Iterable[Execution], store: Store, console: Console) -> list[str]:
    """Executes them in order with a bar each; divergences are shown as they happen. Returns the run ids."""
    run_ids = []
    for execution in executions:
        if execution.reuse:
            run_ids.append(execution.reuse)
            continue
        with Live(execution, console) as live:
            run_ids.append(execute(execution, store, live.on_event))
    return run_ids


class Live:
    """The progress of one execution: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, execution: Execution, console: Console):
        self._name, self._console = execution.name, console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[study]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._trained = self._reused = self._diverged = 0
        self._started = time.monotonic()

    def __enter__(self) -> "Live":
        self._progress.start()
        self._task = self._progress.add_task("starting a kernel", total=None, study=self._name)
        if not self._console.is_terminal:
            self._console.print(f"{self._name}: started")
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()
        trained = f"{self._trained} trained, {self._reused} reused" if self._trained or self._reused else "measured"
        diverged = f", {self._diverged} diverged" if self._diverged else ""
        self._console.print(
            f"{self._name}: {trained}{diverged}, {_duration(time.monotonic() - self._started)}", highlight=False
        )

    def on_event(self, event: dict) -> None:
        kind = event["kind"]
        if kind == "step":
            self._progress.update(
                self._task,
                total=event["total"],
                completed=event["done"],
                description=f"{event['name']}, step {event['step']}",
            )
        elif kind == "progress":
            self._progress.update(self._task, total=event["total"], completed=event["done"], description=event["name"])
        elif kind == "training":
            self._trained, self._reused = self._trained + (not event["reused"]), self._reused + event["reused"]
            self._progress.update(self._task, total=event["total"], completed=event["done"], description=event["name"])
            if event["outcome"] == "diverged":
                self._diverged += 1
                self._console.print(f"  diverged: {event['name']} ({event['cause']})", highlight=False)
            elif not self._console.is_terminal and not event["reused"]:
                self._console.print(
                    f"  {event['done']}/{event['total']} {event['outcome']}: {event['name']}", highlight=False
                )
        elif kind == "broken":
            self._console.print(f"  [red]{event['status']}[/red]: {event['message']}", highlight=False)


def show_results(run_ids: list[str], store: Store, console: Console) -> bool:
    """A line a study, and where they compare. Returns whether all of them finished."""
    console.print()
    all_finished = True
    for run_id in run_ids:
        run = store.get(run_id)
        tags = run.data.tags
        name = f"[bold]{run.info.run_name}[/bold]"
        if run.info.status != "FINISHED":
            all_finished = False
            console.print(f"{name}: [red]{run.info.status}[/red]. {tags.get('cause', '')}", highlight=False)
            continue
        demo = "[yellow]DEMO[/yellow] " if tags["mode"] == "quick" else ""
        holds = {1.0: "Holds.", 0.0: "Does not hold."}.get(run.data.metrics.get("holds"), "Not decided.")
        console.print(f"{name}: {demo}{holds} {tags.get('verdict', 'no verdict')}", highlight=False)
        console.print(f"    {tags.get('effect', '')}   run {run_id[:8]}", style="dim", highlight=False)
    if run_ids:
        mode = store.get(run_ids[0]).data.tags["mode"]
        console.print("\nCompare them: ./run ui, then", highlight=False)
        console.print(f"  {store.compare_url(run_ids, 'studies', mode)}", highlight=False, soft_wrap=True)
        console.print(f"  their trainings: {store.experiment_url('trainings', mode)}", highlight=False, soft_wrap=True)
    return all_finished
