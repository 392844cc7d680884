"""The console that commands print to."""

import sys

from rich.console import Console


class Terminal(Console):
    """A console on standard output.

    Args:
        wide: Width in columns where the output is no terminal. None: rich's default.
    """

    def __init__(self, wide: int | None = None):
        super().__init__(width=None if sys.stdout.isatty() else wide)

    def on_broken_pipe(self) -> None:
        """Raise the error again: `run_program` ends the command, with the exit code that shells use."""
        raise BrokenPipeError
