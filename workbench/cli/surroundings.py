"""What the command line needs from its surroundings: a working directory, and streams that take every character."""

import os
import sys

from workbench.errors import WorkbenchError


def adapt_to_surroundings() -> None:
    """Let the streams write characters that they do not know as escapes, and check the working directory.

    Raises:
        WorkbenchError: If the working directory has been deleted.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        os.getcwd()
    except OSError as error:
        raise WorkbenchError(
            f"the working directory does not exist any more ({error.strerror}). Change into another folder."
        ) from error
