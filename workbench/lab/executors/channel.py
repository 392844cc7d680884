"""What a notebook's process tells its launcher: progress, and how it ended. One JSON object per line of a file."""

import json
from pathlib import Path

from workbench.lab.executors import context


def has_listener() -> bool:
    """Whether a launcher shows the progress, so that this process shows none."""
    here = context.current()
    return here is not None and here.channel is not None


def send(**message) -> None:
    """Send one message. Without a listener nothing happens."""
    if has_listener():
        with open(context.current().channel, "a") as file:
            file.write(json.dumps(message) + "\n")


class Reader:
    """Reads the messages that have come since the last look. A line still being written waits for the next one."""

    def __init__(self, file: Path):
        self._file, self._position = file, 0

    def read(self) -> list[dict]:
        """The new messages, in order."""
        if not self._file.exists():
            return []
        with open(self._file, "rb") as file:
            file.seek(self._position)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
