"""A mistake that the user can mend: the value, the rule and the cure, in one sentence."""

import difflib
from collections.abc import Iterable


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
