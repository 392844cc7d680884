"""Run the trainings of a plan on a machine without tracking.

`python -m workbench.training plan.jsonl --out DIR` ends with one of these exit codes:

    0          all trainings are done, or the time limit has passed
    1          some trainings failed
    2          nothing could start
    130, 143   stopped by Ctrl-C or TERM, with checkpoints
"""

import argparse
import signal
import sys

from workbench import __version__
from workbench.program import run_program
from workbench.training.detached.run import run_plan
from workbench.unexpected import HELP, OPTION


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    cli = argparse.ArgumentParser(
        prog="python -m workbench.training",
        description="Run the trainings of a plan on all GPUs of this machine. To continue, start it again with the "
        "same --out.",
    )
    cli.add_argument("plan", help="file that `workbench study NAME --plan FILE` wrote")
    cli.add_argument("--out", required=True, metavar="DIR", help="folder of the results, for `workbench import DIR`")
    cli.add_argument("--pack", action="store_true", help="write DIR.tar at the end, for `workbench import DIR.tar`")
    cli.add_argument("--device", default="auto", help="auto, cuda (all GPUs), cuda:1, cpu or mps")
    cli.add_argument(
        "--workers", type=int, metavar="N", help="trainings at the same time (default: one per GPU, or one)"
    )
    cli.add_argument("--keep-weights", action="store_true", help="also write the final weights to DIR, of any size")
    cli.add_argument(
        "--limit-minutes", type=float, metavar="M", help="after M minutes write checkpoints of what runs, and stop"
    )
    cli.add_argument("--checkpoint-seconds", type=float, metavar="S", default=60.0, help="seconds between checkpoints")
    cli.add_argument(
        "--other-code",
        action="store_true",
        help="run a plan that was made by other code; its study will not recognise the results",
    )
    cli.add_argument("--version", action="version", version=__version__)
    cli.add_argument(OPTION, action="store_true", help=HELP.lower().removesuffix("."))
    return cli


class _Interrupts:
    """A handler of Ctrl-C and TERM: the first requests a stop, the second stops at once."""

    def __init__(self):
        self.number = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self)

    def __call__(self, number: int, frame) -> None:
        if self.number:
            sys.exit(128 + number)
        self.number = number


def main() -> int:
    """Run the command line and return its exit code."""
    return run_program(_run, debug=OPTION in sys.argv)


def _run() -> int:
    options = vars(parser().parse_args())
    del options[OPTION.lstrip("-")]
    interrupts = _Interrupts()
    summary = run_plan(options.pop("plan"), options.pop("out"), asked_to_stop=lambda: interrupts.number != 0, **options)
    print(
        f"{summary.done} trained, {summary.known} finished before, {len(summary.failed)} failed, {summary.left} left"
        + (". Run the same command again to continue." if summary.left else "")
    )
    if summary.packed is not None:
        print(f"packed: {summary.packed}")
    if interrupts.number and summary.left:
        return 128 + interrupts.number
    return 1 if summary.failed else 0


if __name__ == "__main__":
    sys.exit(main())
