"""A mistake that the user can mend: the value, the rule and the cure, in one sentence."""

import difflib
import errno
from collections.abc import Iterable

# A disk that is full, or that may not be written, as the system says it, and as sqlite, safetensors and torch do.
DISK_CODES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
DISK_WORDS = ("disk is full", "I/O error", "readonly database", "unable to open database")
DISK_WORDS += ("iostream error", "unexpected pos")


class WorkbenchError(ValueError):
    """Raised early, before anything has been computed or written; the command line prints it and exits with 2."""


def unknown(kind: str, name: str, known: Iterable[str]) -> WorkbenchError:
    """The refusal of a name that does not exist, with the nearest one that does."""
    known = sorted(known)
    lower = {str(k).lower(): k for k in known}
    near = [lower[k] for k in difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.4)]
    shown = ", ".join(known[:12]) + (f", ... ({len(known)} in all)" if len(known) > 12 else "")
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {shown or 'none'}."
    return WorkbenchError(f"unknown {kind} '{name}': {hint}")


def disk_error_message(error: BaseException | None) -> str | None:
    """What an error, or one that it came from, says of a disk that is full or may not be written; None if nothing."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_CODES:
            return f"{error.filename}: {error.strerror}" if error.filename else str(error)
        for line in str(error).splitlines():
            if any(word in line for word in DISK_WORDS):
                return line
        error = error.__cause__ or error.__context__
    return None
