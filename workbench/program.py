"""The frame of every program: open standard streams, and an exit code and one sentence for every error.

Exit codes: 0 success, 1 something failed, 2 a mistake of the user, 130 Ctrl-C, 141 nobody reads the output.
"""

import contextlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable

from workbench.errors import WorkbenchError, disk_error_message
from workbench.unexpected import OPTION, explain

FAILED, MISTAKE = 1, 2
INTERRUPTED, UNREAD = 128 + signal.SIGINT, 128 + signal.SIGPIPE  # as in shells


def run_program(body: Callable[[], int | None], *, debug: bool = False) -> int:
    """Run a program.

    Args:
        body: Does the work and returns the exit code. None means 0.
        debug: Whether to print the traceback of an error, too.

    Returns:
        The exit code. An error is printed as one sentence.
    """
    open_streams()
    try:
        code = body() or 0
        sys.stdout.flush()
    except BaseException as error:
        code = _report(error, debug)
    _close_quietly()
    return code


def without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Return the arguments without `--debug`, and whether it was one of them. Those after `--` count as values."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [argument for argument in arguments[:end] if argument != OPTION]
    return options + arguments[end:], len(options) < end


def open_streams() -> None:
    """Open the standard streams that the caller closed, on the null device.

    Otherwise the next file that is opened would get the number of a stream, and take its output.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)  # child processes get it, too
            if null != number:
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w"))  # noqa: SIM115 - until the end


def say(text: str) -> None:
    """Print a line of the workbench to standard error, if anybody reads it."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    printable = text.encode(encoding, "backslashreplace").decode(encoding)
    with contextlib.suppress(OSError, ValueError):
        print(f"workbench: {printable}", file=sys.stderr, flush=True)


def _report(error: BaseException, debug: bool) -> int:
    """Print an error as one sentence, and return the exit code."""
    if _is_about_output(error):
        return UNREAD
    if isinstance(error, SystemExit):
        return _code_of(error)
    if debug:
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, WorkbenchError):
        say(str(error))
        return MISTAKE
    cause = None
    with contextlib.suppress(Exception):  # of an error that has no text
        cause = disk_error_message(error)
    if cause is not None:
        places = "WORKBENCH_ROOT, MLFLOW_TRACKING_URI or --out"
        say(f"Cannot write to the disk ({cause}). Free some space, or choose another place with {places}.")
        return MISTAKE
    say(explain(error))
    return FAILED


def _code_of(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    say(str(end.code))
    return FAILED


def _is_about_output(error: BaseException | None) -> bool:
    """Return whether the error came from an output that nobody reads, such as that of `| head -1`.

    A broken pipe may also be that of a worker or a server. Libraries turn it into SystemExit.
    """
    while error is not None:
        if isinstance(error, BrokenPipeError):
            return _is_unread(1) or _is_unread(2)
        error = error.__cause__ or error.__context__
    return False


def _is_unread(number: int) -> bool:
    """Return whether an open file is a pipe without a reader."""
    poll = select.poll()
    poll.register(number, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _close_quietly() -> None:
    """Write what is left to the standard streams, so that Python does not complain about it at its end."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, number)
                os.close(null)
