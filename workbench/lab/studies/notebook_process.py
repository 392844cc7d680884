"""A running notebook as the launcher sees it: its process, its messages, and how it ended."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from workbench.environment import inherited, text
from workbench.lab.executors.channel import Reader
from workbench.lab.executors.context import Context
from workbench.lab.executors.lifetime import Family
from workbench.paths import import_folder, root

TERMINATED = 128 + 15  # exit code of a process that ended itself on SIGTERM


@dataclass(frozen=True)
class NotebookEnd:
    """How a notebook ended.

    Attributes:
        status: FINISHED, FAILED (the notebook or its kernel broke) or KILLED (a signal ended its process).
        message: The error. Empty without an error.
        files: The texts of run.ipynb and run.html, if they were written.
    """

    status: str
    message: str = ""
    files: dict[str, str] = field(default_factory=dict)


class NotebookProcess:
    """A process that executes a notebook. Its program is notebook.py."""

    def __init__(self, notebook: Path, parameters: dict, context: Context, environment: dict[str, str] | None = None):
        """Start the process.

        Args:
            notebook: The file.
            parameters: All of the notebook's parameters, plain data.
            context: Passed to the process. Its channel is made here.
            environment: Further environment variables.
        """
        self._scratch = tempfile.TemporaryDirectory()
        self._out = Path(self._scratch.name) / "run.ipynb"
        channel = self._out.with_suffix(".messages")
        variables = inherited(_environment() | (environment or {}))
        command = [sys.executable, "-m", "workbench.lab.studies.notebook", str(notebook), str(self._out)]
        with open(self._out.with_suffix(".log"), "wb") as log:
            self._process = subprocess.Popen(
                [*command, json.dumps(parameters)],
                env=variables | dataclasses.replace(context, channel=channel).environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the launcher
            )
        self._reader, self._family = Reader(channel), Family(self._process.pid)
        self._failure: str | None = None

    def messages(self) -> list[dict]:
        """Return the progress messages since the last call."""
        self._family.look()
        messages = self._reader.read()
        failures = [message["message"] for message in messages if message["kind"] == "failure"]
        self._failure = failures[-1] if failures else self._failure
        return [message for message in messages if message["kind"] != "failure"]

    def has_ended(self) -> bool:
        """Return whether the process is gone. Its last messages may still be unread."""
        return self._process.poll() is not None

    def end(self) -> NotebookEnd:
        """Wait for the end of the process, clean up, and return how it ended.

        Ends its remaining child processes, and deletes its temporary files.
        """
        code = self._process.wait()
        self.messages()
        self._family.end()
        files = [file for file in (self._out, self._out.with_suffix(".html")) if file.exists()]
        texts = {file.name: file.read_text() for file in files}
        log = self._out.with_suffix(".log").read_text(errors="replace")
        self._scratch.cleanup()
        if code == 0:
            return NotebookEnd("FINISHED", files=texts)
        if code < 0 or code == TERMINATED:
            number = -code if code < 0 else TERMINATED - 128
            return NotebookEnd("KILLED", f"the notebook's process was ended by signal {number}", texts)
        return NotebookEnd(
            "FAILED", self._failure or _last_line(log) or f"the process ended with exit code {code}", texts
        )

    def stop(self, grace: float = 5.0) -> None:
        """End the process and its child processes, after `grace` seconds to save their results."""
        self._family.end(grace)
        self._process.wait()
        self._scratch.cleanup()

    def kill(self) -> None:
        """End the process and its child processes at once."""
        self._family.end(grace=0.0)


def _environment() -> dict[str, str]:
    """Return variables that point to this checkout and store, and that silence warnings."""
    return {
        "WORKBENCH_ROOT": str(root()),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(import_folder()), text("PYTHONPATH")])),
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def _last_line(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip() and "[IPKernelApp] WARNING" not in line]
    return lines[-1] if lines else ""
