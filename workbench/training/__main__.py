"""`python -m workbench.training plan.jsonl --out DIR`: a plan's trainings, on a machine without tracking.

Exit code 0: all are done, or the time given is up; 1: some failed; 2: nothing could begin; 130 and 143: stopped by
Ctrl-C and TERM, with checkpoints.
"""

import argparse
import signal
import sys

from workbench.errors import WorkbenchError
from workbench.training.detached.run import run_plan


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(
        prog="python -m workbench.training",
        description="Run a plan's trainings on all GPUs of this machine. Started again with the same --out it goes on.",
    )
    cli.add_argument("plan", help="written by `workbench study NAME --plan FILE`")
    cli.add_argument("--out", required=True, metavar="DIR", help="for the results; `workbench import DIR` takes them")
    cli.add_argument(
        "--pack", action="store_true", help="write DIR.tar at the end; `workbench import DIR.tar` takes it"
    )
    cli.add_argument("--device", default="auto", help="auto, cuda (all GPUs), cuda:1, cpu, mps")
    cli.add_argument("--workers", type=int, metavar="N", help="trainings at a time; default: one a GPU, or one")
    cli.add_argument("--keep-weights", action="store_true", help="final weights into DIR, too, whatever their size")
    cli.add_argument("--limit-minutes", type=float, metavar="M", help="then checkpoint what is under way and stop")
    cli.add_argument("--checkpoint-seconds", type=float, metavar="S", default=60.0, help="between checkpoints")
    cli.add_argument(
        "--other-code",
        action="store_true",
        help="run a plan that other code has made; its study will not know the results",
    )
    return cli


class _Interrupts:
    """Ctrl-C and TERM: the first asks to stop, the second stops at once."""

    def __init__(self):
        self.number = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self)

    def __call__(self, number: int, frame) -> None:
        if self.number:
            sys.exit(128 + number)
        self.number = number


def main() -> int:
    """Runs the command line; returns its exit code."""
    options = vars(parser().parse_args())
    interrupts = _Interrupts()
    try:
        summary = run_plan(
            options.pop("plan"), options.pop("out"), asked_to_stop=lambda: interrupts.number != 0, **options
        )
    except WorkbenchError as error:
        print(f"workbench: {error}", file=sys.stderr)
        return 2
    print(
        f"{summary.done} trained, {summary.known} finished before, {len(summary.failed)} failed, {summary.left} left"
        + (": the same command goes on from there" if summary.left else "")
    )
    if summary.packed is not None:
        print(f"packed: {summary.packed}")
    if interrupts.number and summary.left:
        return 128 + interrupts.number
    return 1 if summary.failed else 0


if __name__ == "__main__":
    sys.exit(main())
