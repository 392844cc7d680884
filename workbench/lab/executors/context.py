"""What a notebook's process knows about its launcher: one JSON value in the environment."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from workbench.environment import inherited
from workbench.errors import WorkbenchError, shown

VARIABLE = "WORKBENCH_CONTEXT"


@dataclass(frozen=True)
class Context:
    """The launcher's side of one execution of a notebook.

    Attributes:
        study: The study's name.
        mode: "full" or "quick".
        launcher: Identity of the launcher's process, see `lifetime.whoami`.
        run_id: The run that the launcher opened. None: trainings are only planned.
        channel: The file that carries progress and results to the launcher.
        executor: Where trainings run, as `Choice` reads it.
        plan: The file that receives the missing trainings. None: they run.
    """

    study: str
    mode: str
    launcher: str
    run_id: str | None = None
    channel: Path | None = None
    executor: str = "inline"
    plan: Path | None = None

    def environment(self) -> dict[str, str]:
        """Return the environment variable that passes this context to a process."""
        return {VARIABLE: json.dumps(dataclasses.asdict(self), default=str)}


def context_of(environment: Mapping[str, str]) -> Context | None:
    """Read the context from a process's environment. None: no launcher started the process."""
    if not environment.get(VARIABLE):
        return None
    try:
        return TypeAdapter(Context).validate_json(environment[VARIABLE].encode(errors="surrogateescape"))
    except ValidationError as error:
        text = shown(environment[VARIABLE], 80)
        raise WorkbenchError(f"{VARIABLE} must be what a launcher sets, got {text}. Unset it.") from error


def current() -> Context | None:
    """Return the context of this process."""
    return context_of(inherited())
