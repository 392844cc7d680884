"""Prints studies: the plan before they run, progress while they run, and one line each at the end."""

import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from workbench.bars import Lines, shows_bars
from workbench.lab.executors import Choice
from workbench.lab.store.client import Store
from workbench.lab.studies.launcher import Execution, execute
from workbench.outcomes import FAILURES


def show_plan(executions: list[Execution], workers: int, console: Console) -> None:
    """Print what runs and why, what is reused, and how long it may take.

    Args:
        executions: The plan.
        workers: How many trainings run at a time, for the estimate.
        console: Where to print.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("study", "mode", "plan", "why", "estimate"):
        table.add_column(heading)
    for e in executions:
        plan = f"reuse run {e.run[:8]}" if e.action == "reuse" else e.action
        why = {"finished": "finished", "new": e.why}.get(e.state, f"{e.state}: {e.why}")
        table.add_row(escape(e.name), e.mode, plan, escape(why), _duration(e.seconds) if e.action == "run" else "")
    console.print(table)
    todo = [e for e in executions if e.action == "run"]
    known = [e.seconds for e in todo if e.seconds is not None]
    counts = [(len(todo), "to run")] + [
        (sum(e.action == action for e in executions), word) for action, word in (("reuse", "reused"), ("leave", "left"))
    ]
    summary = ", ".join(f"{count} {word}" for count, word in counts if count or word != "left")
    if todo:
        at_a_time = min(workers, len(todo))
        estimate = _duration(max(sum(known) / at_a_time, max(known)) if known else None)
        console.print(f"{summary}; about {estimate} in all.\n")
    elif any(e.action == "leave" for e in executions):
        console.print(f"Nothing to run: {summary} (see column why). Without --rerun, all unfinished ones run.\n")
    else:
        console.print("Nothing to run: the store has every execution. To repeat them, add --rerun all.\n")


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


def run_and_show(executions: list[Execution], store: Store, choice: Choice, console: Console) -> list[str]:
    """Execute the plan with one progress bar per execution.

    Args:
        executions: The plan.
        store: Where to record.
        choice: Where the trainings run.
        console: Where to print.

    Returns:
        The run ids.
    """
    with Board(console) as board, _announcing_interruption(console):
        try:
            return execute(executions, store, choice, board.on_event)
        except KeyboardInterrupt:
            board.stopping()
            raise


@contextlib.contextmanager
def _announcing_interruption(console: Console) -> Iterator[None]:
    """Announce a Ctrl-C at once, because saving takes a while."""

    def interrupted(*_) -> None:
        console.print("Stopping after saving the work so far. Press Ctrl-C again to stop at once.", highlight=False)
        raise KeyboardInterrupt

    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # a script in the background ignores it on purpose
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class _Line:
    """The progress of one execution."""

    bar: TaskID
    log: Lines
    started: float
    trained: int = 0
    reused: int = 0
    failed: Counter = field(default_factory=Counter)  # number of trainings by outcome


class Board:
    """Progress of all executions: bars on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console):
        self._console, self._lines = console, {}
        self._bars = shows_bars(console.file) and console.is_terminal and not console.is_dumb_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[study]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not self._bars,
        )

    def __enter__(self) -> "Board":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def stopping(self) -> None:
        """Print that all executions stopped. Call this after an interruption was handled."""
        for name in list(self._lines):
            self._end(name, "stopped")

    def on_event(self, execution: Execution, event: dict) -> None:
        """Show one event of an execution. The launcher calls this."""
        kind, name = event["kind"], execution.name
        if kind == "started":
            if name in self._lines:  # a second attempt
                self._progress.remove_task(self._lines[name].bar)
            self._lines[name] = _Line(
                self._progress.add_task("starting a kernel", total=None, study=name),
                Lines(None, desc=f"  {name}", unit="training", file=self._console.file),
                time.monotonic(),
            )
            if not self._bars:
                self._console.print(f"{name}: started", markup=False)
            return
        line = self._lines[name]
        if kind == "step":
            self._update(line, event, f"{event['name']}, step {event['step']}, loss {event['loss']:.3f}")
        elif kind == "progress":
            self._update(line, event, event["name"])
        elif kind == "training":
            self._training(line, event)
        elif kind == "waiting":
            self._console.print(f"  {event['message']}", markup=False, highlight=False)
        elif kind == "broken":
            self._console.print(f"  [red]{event['status']}[/red]: {escape(event['message'])}", highlight=False)
        elif kind == "ended":
            self._end(name, "" if event["status"] == "FINISHED" else event["status"].lower())

    def _update(self, line: _Line, event: dict, description: str) -> None:
        if not self._bars:
            line.log.total, line.log.n, line.log.before = event["total"], event["done"], line.reused
            line.log.set_postfix_str(description)
            return
        self._progress.update(line.bar, total=event["total"], completed=event["done"], description=description)

    def _training(self, line: _Line, event: dict) -> None:
        line.trained, line.reused = line.trained + (not event["reused"]), line.reused + event["reused"]
        self._update(line, event, event["name"])
        if event["outcome"] in FAILURES:
            line.failed[event["outcome"]] += 1
            count = "" if self._bars else f"{event['done']}/{event['total']} "
            self._console.print(
                f"  {count}{event['outcome']}: {event['name']} ({event['cause']})", markup=False, highlight=False
            )
        elif not self._bars and not event["reused"]:
            self._console.print(
                f"  {event['done']}/{event['total']} {event['outcome']}: {event['name']}", markup=False, highlight=False
            )

    def _end(self, name: str, how: str) -> None:
        line = self._lines.pop(name)
        self._progress.remove_task(line.bar)
        trained = f"{line.trained} trained, {line.reused} reused" if line.trained or line.reused else "measured"
        summary = [how or trained, *(f"{n} {outcome}" for outcome, n in line.failed.items())]
        summary = ", ".join(filter(None, [*summary, _duration(time.monotonic() - line.started)]))
        self._console.print(f"{name}: {summary}", markup=False, highlight=False)


def show_results(run_ids: list[str], store: Store, console: Console) -> bool:
    """Print one line per study, and where to compare them.

    Returns:
        Whether all studies finished.
    """
    console.print()
    all_finished = True
    kept = [run_id for run_id in run_ids if store.has(run_id)]
    for run_id in (run_id for run_id in run_ids if run_id not in kept):
        all_finished = False
        console.print(f"Run {run_id[:8]} was deleted in MLflow. Run its study again.", highlight=False)
    for run_id in kept:
        run = store.get(run_id)
        tags = run.tags
        name = f"[bold]{escape(run.name)}[/bold]"
        if run.status != "FINISHED":
            all_finished = False
            console.print(f"{name}: [red]{run.status}[/red]. {escape(tags.get('cause', ''))}", highlight=False)
            continue
        demo = "[yellow]DEMO[/yellow] " if tags.get("mode") == "quick" else ""
        answer = tags.get("answer", "No answer")
        console.print(f"{name}: {demo}{answer}. {escape(tags.get('verdict', 'no verdict'))}", highlight=False)
        effect_line = f"    {tags.get('effect', '')}   run {run_id[:8]}"
        console.print(effect_line, style="dim", markup=False, highlight=False)
    if kept:
        mode = store.get(kept[0]).tags.get("mode", "full")
        pages = "" if store.uri.startswith("http") else " start ./run ui, then open"
        console.print(f"\nCompare them:{pages}", highlight=False)
        console.print(f"  {store.compare_url(kept, 'studies', mode)}", highlight=False, soft_wrap=True)
        console.print(f"  their trainings: {store.experiment_url('trainings', mode)}", highlight=False, soft_wrap=True)
    return all_finished
