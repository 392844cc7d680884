"""Say in one sentence what failed in a user's code, with its file and line."""

import ast
import contextlib
import opcode
import traceback
from collections.abc import Collection, Iterator
from pathlib import Path

from workbench.errors import WorkbenchError

PACKAGE = Path(__file__).resolve().parent
LONGEST = 200  # characters of an error's text in the sentence
RAISE = opcode.opmap["RAISE_VARARGS"]

_imported: set[Path] = set()  # the files of users' code that this process imported


@contextlib.contextmanager
def explained(what: str, files: Collection[Path]) -> Iterator[None]:
    """Turn whatever a user's code raises into one sentence. Let signals to this process pass.

    Args:
        what: Start of the sentence, such as "cannot import my_net.py".
        files: The files of the user's code, of which the last one in the traceback is named.

    Raises:
        WorkbenchError: For everything that the code raises, also `sys.exit` and `raise KeyboardInterrupt`.
    """
    try:
        yield
    except BaseException as error:
        if _is_signal(error):
            raise
        raise WorkbenchError(f"{what} ({description(error)}){_place(error, files)}.") from error


def remember(files: Collection[Path]) -> None:
    """Take files for a user's code from now on, so that `of_user` finds them in tracebacks."""
    _imported.update(files)


def of_user(error: BaseException) -> WorkbenchError | None:
    """Return the sentence for an error that a user's imported code raised, such as the forward of a network.

    Args:
        error: The error, also `sys.exit` and `raise KeyboardInterrupt`.

    Returns:
        The sentence with the file and the line. None: the error is another one, or is a sentence already.
    """
    place = "" if isinstance(error, WorkbenchError) or _is_signal(error) else place_of(error)
    return WorkbenchError(f"the network's code failed ({description(error)}){place}.") if place else None


def parsed(file: Path) -> ast.Module:
    """Return the syntax tree of a user's file. Run none of it.

    Raises:
        WorkbenchError: If the file cannot be read, or is not Python. The message has the file and the line.
    """
    source = b""
    try:
        source = file.read_bytes()
        return ast.parse(source, str(file))
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or _unreadable_line(source)
        where = f", line {line}" if line else ""
        raise WorkbenchError(f"cannot import {file}{where} ({description(error)}). Correct the file.") from error


def description(error: BaseException) -> str:
    """Return the type and the text of an error in one line, even if its text cannot be made."""
    try:
        text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    except Exception:  # a class of the user can fail here, too
        text = ""
    kind = type(error).__name__
    return f"{kind}: {text[:LONGEST]}" if text else kind


def _is_signal(error: BaseException) -> bool:
    """Whether an error comes from a signal to this process, and not from the user's code.

    Python raises KeyboardInterrupt between two instructions. The handlers of this package raise it, or SystemExit.
    """
    if not isinstance(error, KeyboardInterrupt | SystemExit) or error.__traceback__ is None:
        return False
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    code = last.tb_frame.f_code
    ours = Path(code.co_filename).is_relative_to(PACKAGE)
    return ours or (isinstance(error, KeyboardInterrupt) and code.co_code[last.tb_lasti] != RAISE)


def place_of(error: BaseException) -> str:
    """Return " in FILE, line N" for an error from a user's imported code, and nothing for another one."""
    return _place(error, _imported)


def _place(error: BaseException, files: Collection[Path]) -> str:
    named = {str(file) for file in files}
    if isinstance(error, SyntaxError) and error.filename:
        return f" in {error.filename}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in named]
    return f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def _unreadable_line(source: bytes) -> int | None:
    """Return the number of the first line with a NUL byte or with text that is not UTF-8."""
    for at, line in enumerate(source.split(b"\n"), start=1):
        try:
            if "\0" in line.decode():
                return at
        except UnicodeDecodeError:
            return at
    return 1 if source else None
