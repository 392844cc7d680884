"""What a notebook tells the launcher while it runs: one JSON object a line, in the file that WORKBENCH_EVENTS names."""

import json
import os
from pathlib import Path

VARIABLE = "WORKBENCH_EVENTS"


def listening() -> bool:
    """Whether a launcher shows the progress, so that nothing here needs to."""
    return VARIABLE in os.environ


def emit(**event) -> None:
    """Sends one event; does nothing when nobody listens."""
    if listening():
        with open(os.environ[VARIABLE], "a") as file:
            file.write(json.dumps(event) + "\n")


class Reader:
    """Reads the events that have come since the last look; a line still being written waits for the next."""

    def __init__(self, file: Path):
        self._file, self._position = file, 0

    def read(self) -> list[dict]:
        if not self._file.exists():
            return []
        with open(self._file, "rb") as file:
            file.seek(self._position)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
