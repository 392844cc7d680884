"""Messages from a notebook's process to its launcher: progress, and how the process ended.

They go through a file, one JSON object per line.
"""

import json
import sys
from pathlib import Path

from workbench.lab.executors import context


def has_listener() -> bool:
    """Say whether a launcher shows the progress. This process then shows none."""
    launched = context.current()
    return launched is not None and launched.channel is not None


def send(**message) -> None:
    """Send one message, or do nothing without a listener."""
    if has_listener():
        with open(context.current().channel, "a") as file:
            file.write(json.dumps(message) + "\n")


def announce(message: str) -> None:
    """Show one line to the user: through the launcher, else on standard error."""
    send(kind="waiting", message=message)
    if not has_listener():
        print(message, file=sys.stderr, flush=True)


class Reader:
    """Reads the messages that came since the last read.

    An unfinished line waits for the next read.
    """

    def __init__(self, file: Path):
        self._file, self._position = file, 0

    def read(self) -> list[dict]:
        """Return the new messages, in order."""
        if not self._file.exists():
            return []
        with open(self._file, "rb") as file:
            file.seek(self._position)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
