"""A study: a YAML file with a question, a notebook and parameters, checked before it runs."""

import contextlib
import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workbench.errors import WorkbenchError, unknown
from workbench.files import local_path
from workbench.lab.studies.parameters import Parameter, check_names, read_parameters
from workbench.lab.studies.plain_yaml import read_yaml
from workbench.paths import root


class Study(BaseModel):
    """The content of a study's file.

    Parameters must have names from the notebook's parameters cell, and values that fit its annotations.

    Attributes:
        question: The question that the study answers.
        notebook: File name of its notebook in notebooks/.
        parameters: Values that differ from the notebook's defaults.
        matrix: Lists of values by parameter. Every combination is one execution.
        quick: Values for quick mode.
        tour: Whether the study is part of the tour.
        minutes: Estimated minutes by mode, "full" and "quick", on two cores. Used until the store has finished runs.
        name: The file name without suffix.
    """

    model_config = ConfigDict(extra="forbid")

    question: str
    notebook: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    matrix: dict[str, list[Any]] = Field(default_factory=dict)
    quick: dict[str, Any] = Field(default_factory=dict)
    tour: bool = False
    minutes: dict[str, float] = Field(default_factory=dict)
    name: str = ""

    @classmethod
    def load(cls, spec: str | Path) -> "Study":
        """Read and check a study.

        Args:
            spec: A path, or the name of a file in studies/.

        Raises:
            WorkbenchError: If the file is missing or invalid.
        """
        file = find_study(spec)
        if not re.fullmatch(r"[\w .-]+", file.stem):
            raise WorkbenchError(
                f"the file name of a study may contain only letters, digits, spaces, dots, dashes and _, "
                f"got {file.name}. Rename the file."
            )
        content = read_yaml(file)
        if not isinstance(content, dict):
            raise WorkbenchError(
                f"{file.name} must hold `question:` and `notebook:`, but is "
                f"{'empty' if content is None else 'a ' + type(content).__name__}."
            )
        for key in content:
            if key not in cls.model_fields or key == "name":
                raise unknown(f"key in {file.name}", key, set(cls.model_fields) - {"name"})
        try:
            study = cls(**content, name=file.stem)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise WorkbenchError(f"`{key}` in {file.name} is invalid: {first['msg']}.") from None
        study.executions(quick=True)
        study.executions(quick=False)
        return study

    @property
    def notebook_file(self) -> Path:
        """Return the path of the notebook."""
        return root() / "notebooks" / self.notebook

    def knobs(self) -> dict[str, Parameter]:
        """Return the parameters of the notebook."""
        return read_parameters(self.notebook_file)

    def executions(self, *, quick: bool, overrides: dict[str, str] | None = None) -> list[dict[str, Any]]:
        """Return the checked parameters of every execution.

        Later sources override earlier ones: the cell's defaults, `parameters`, `matrix`, `quick`, and `overrides`.

        Args:
            quick: Whether to use the values for quick mode.
            overrides: Values as text by name, from `-p`.

        Raises:
            WorkbenchError: If a parameter is unknown, or its value does not fit.
        """
        knobs = self.knobs()
        where = f"{self.name}.yaml"
        check_names([*self.parameters, *self.matrix, *self.quick], knobs, where)
        check_names(overrides or {}, knobs, "-p")
        for name, values in self.matrix.items():
            if not values:
                raise WorkbenchError(f"`matrix.{name}` in {where} must list at least one value, got {values}.")
        given = {name: knobs[name].parse(text) for name, text in (overrides or {}).items()}
        executions = []
        for point in itertools.product(*self.matrix.values()):
            values = {
                **self.parameters,
                **dict(zip(self.matrix, point, strict=True)),
                **(self.quick if quick else {}),
                **given,
            }
            checked = {name: knobs[name].check(value) for name, value in values.items()}
            full = {name: knob.default for name, knob in knobs.items()} | checked
            if full not in executions:  # quick may make the points of a matrix equal
                executions.append(full)
        return executions


def find_study(spec: str | Path) -> Path:
    """Find the file of a study by path or name.

    Raises:
        WorkbenchError: If there is no such study. The message has the nearest name.
    """
    candidates = [local_path(spec), root() / "studies" / f"{spec}.yaml", root() / str(spec)]
    for file in candidates:
        with contextlib.suppress(OSError):  # such as a name that is too long
            if file.is_file():
                return file
    raise unknown("study", Path(spec).stem, [f.stem for f in all_studies()], given=spec)


def distinct(specs: Iterable[str | Path]) -> list[Study]:
    """Load the studies with these paths or names, each file once.

    Raises:
        WorkbenchError: If two files have the same name, because the store identifies studies by name.
    """
    files: dict[str, Path] = {}
    for file in map(find_study, specs):
        if files.setdefault(file.stem, file.resolve()) != file.resolve():
            raise WorkbenchError(
                f"two studies have the same name {file.stem}: {files[file.stem]} and {file.resolve()}. "
                "Rename one of the files."
            )
    return [Study.load(file) for file in files.values()]


def all_studies() -> list[Path]:
    """Return the files of all studies in studies/."""
    return sorted((root() / "studies").glob("*.yaml"))
