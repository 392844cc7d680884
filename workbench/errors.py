"""Errors that a user can correct.

A message gives the value, the rule and the cure, in at most two sentences.
"""

import difflib
import errno
from collections.abc import Iterable

# How the system reports a disk that is full or read-only, and how sqlite, safetensors and torch do.
DISK_CODES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
DISK_WORDS = ("disk is full", "I/O error", "readonly database", "unable to open database")
DISK_WORDS += ("iostream error", "unexpected pos")


class WorkbenchError(ValueError):
    """Error that a user can correct.

    It is raised early, before anything is computed or written. The command line prints it and exits with 2.
    """


def shown(value: object, limit: int = 200, quote: bool = True) -> str:
    """Write a value for a message, cut off after `limit` characters."""
    text = repr(value) if quote else str(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def unknown(kind: str, name: str, known: Iterable[str]) -> WorkbenchError:
    """Make the error for a name that does not exist. The caller raises it.

    Args:
        kind: What the name stands for, such as "precision".
        name: The unknown name.
        known: All names that exist.

    Returns:
        An error that suggests the nearest known name, or lists the known names if none is near.
    """
    known = sorted(known)
    lower = {str(k).lower(): k for k in known}
    near = [lower[k] for k in difflib.get_close_matches(str(name)[:100].lower(), lower, n=1, cutoff=0.4)]
    listed = ", ".join(known[:12]) + (f", ... ({len(known)} in all)" if len(known) > 12 else "")
    hint = f"did you mean '{near[0]}'?" if near else f"choose one of: {listed or 'none exist'}."
    return WorkbenchError(f"unknown {kind} '{shown(name, 100, quote=False)}': {hint}")


def disk_error_message(error: BaseException | None) -> str | None:
    """Find the message about a full or read-only disk in an error and its causes.

    Args:
        error: The error. Its `__cause__` and `__context__` are searched, too.

    Returns:
        The message; None if the error has another cause.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_CODES:
            return f"{error.filename}: {error.strerror}" if error.filename else str(error)
        for line in str(error).splitlines():
            if any(word in line for word in DISK_WORDS):
                return line
        error = error.__cause__ or error.__context__
    return None
