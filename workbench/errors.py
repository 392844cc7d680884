"""Errors that a user can correct.

A message gives the value, the rule and the cure, in at most two sentences.
"""

import difflib
import errno
import re
from collections.abc import Iterable

# How the system reports a disk that is full or read-only, and how sqlite, safetensors and torch do.
DISK_CODES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
NEAR = 0.54  # least similarity of a name that is suggested, from 0 to 1
DISK_WORDS = ("disk is full", "I/O error", "readonly database", "unable to open database")
DISK_WORDS += ("iostream error", "unexpected pos")


class WorkbenchError(ValueError):
    """Error that a user can correct.

    It is raised early, before anything is computed or written. The command line prints it and exits with 2.
    """


def shown(value: object, limit: int = 200, quote: bool = True) -> str:
    """Write a value for a message, on one line, cut off after `limit` characters."""
    text = repr(value) if quote else "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value)[: limit + 1])
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def unknown(kind: str, name: str, known: Iterable[str], given: object = None) -> WorkbenchError:
    """Make the error for a name that does not exist. The caller raises it.

    Args:
        kind: What the name stands for, such as "precision".
        name: The unknown name.
        known: All names that exist.
        given: What the user gave if that is more than the name, such as a path.

    Returns:
        An error that suggests the nearest known name, or lists the known names if none is near.
    """
    known = sorted(known)
    near = _nearest(str(name)[:100], known)
    listed = ", ".join(known[:12]) + (f", ... ({len(known)} in all)" if len(known) > 12 else "")
    hint = f"did you mean '{near}'?" if near is not None else f"choose one of: {listed or 'none exist'}."
    what = shown(name if given is None else _end(str(given)), 100, quote=False)
    return WorkbenchError(f"unknown {kind} '{what}': {hint}")


def _end(path: str, limit: int = 90) -> str:
    """Return the end of a path, which tells more than its beginning."""
    return path if len(path) <= limit else f"...{path[-limit:]}"


def _nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the most similar name, or the one that has the given name as a part, such as base_lr for lr."""
    lower, name = {str(k).lower(): k for k in known}, name.lower()
    parts = [k for k in lower if name in re.split(r"[^a-z0-9]+", k)]
    near = difflib.get_close_matches(name, lower, n=1, cutoff=NEAR) or difflib.get_close_matches(name, parts, 1, 0.0)
    return lower[near[0]] if near else None


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
