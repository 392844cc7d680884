"""What a notebook's process knows of the launcher that started it: one JSON value in the environment."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "WORKBENCH_CONTEXT"


@dataclass(frozen=True)
class Context:
    """The launcher's side of one execution of a notebook.

    Attributes:
        study: The study's name.
        mode: "full" or "quick".
        launcher: Identity of the launcher's process, see `lifetime.whoami`.
        run_id: The run that the launcher has opened; None where trainings are only planned.
        channel: The file that carries progress and results to the launcher.
        executor: Where trainings run, as `Choice` reads it.
        plan: The file that takes the trainings that are missing; None where they run.
    """

    study: str
    mode: str
    launcher: str
    run_id: str | None = None
    channel: Path | None = None
    executor: str = "inline"
    plan: Path | None = None

    def environment(self) -> dict[str, str]:
        """The variable that hands this down to a process."""
        return {VARIABLE: json.dumps(dataclasses.asdict(self), default=str)}


def context_of(environment: Mapping[str, str]) -> Context | None:
    """The context in a process's environment; None for a process that no launcher started."""
    if not environment.get(VARIABLE):
        return None
    values = json.loads(environment[VARIABLE])
    paths = {name: Path(values[name]) for name in ("channel", "plan") if values.get(name) is not None}
    return Context(**{**values, **paths})


def current() -> Context | None:
    """The context of this process."""
    return context_of(os.environ)
