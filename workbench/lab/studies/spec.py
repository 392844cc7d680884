"""A study: a YAML file that says which question, which notebook, with which parameters. Checked whole before it
runs."""

import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workbench.errors import WorkbenchError, unknown
from workbench.lab.studies.parameters import Parameter, check_names, read_parameters
from workbench.paths import root


class Study(BaseModel):
    """The file's content. Parameters may use only the names of the notebook's parameters cell, with values that fit
    its annotations."""

    model_config = ConfigDict(extra="forbid")

    question: str
    notebook: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    matrix: dict[str, list[Any]] = Field(default_factory=dict)
    quick: dict[str, Any] = Field(default_factory=dict)
    tour: bool = False
    minutes: dict[str, float] = Field(
        default_factory=dict
    )  # quick and full, on two cores: the estimate until there are runs to go by
    name: str = ""

    @classmethod
    def load(cls, spec: str | Path) -> "Study":
        """Reads and checks a study by path, or by the name of a file in studies/."""
        import yaml

        file = find_study(spec)
        if not re.fullmatch(r"[\w .-]+", file.stem):
            raise WorkbenchError(
                f"{file.name} names a study: rename it to letters, digits, spaces, dots, dashes and _ only."
            )
        try:
            content = yaml.safe_load(file.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
            where = "" if mark is None else f" (line {mark.line + 1})"
            raise WorkbenchError(f"{file.name} is not YAML: {problem.splitlines()[0].strip()}{where}.") from error
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
            raise WorkbenchError(f"{file.name}: `{'.'.join(map(str, first['loc']))}`: {first['msg']}.") from None
        study.executions(quick=True)
        study.executions(quick=False)
        return study

    @property
    def notebook_file(self) -> Path:
        return root() / "notebooks" / self.notebook

    def knobs(self) -> dict[str, Parameter]:
        """The parameters that the notebook has."""
        return read_parameters(self.notebook_file)

    def executions(self, *, quick: bool, overrides: dict[str, str] | None = None) -> list[dict[str, Any]]:
        """The full parameters of every execution: the cell's defaults, then parameters, matrix, quick, and -p. All
        are checked."""
        knobs = self.knobs()
        where = f"{self.name}.yaml"
        check_names([*self.parameters, *self.matrix, *self.quick], knobs, where)
        check_names(overrides or {}, knobs, "-p")
        for name, values in self.matrix.items():
            if not values:
                raise WorkbenchError(f"{where}: `matrix.{name}` must list at least one value.")
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
    """The file of a study, by path or by name; an unknown name is refused with the nearest."""
    candidates = [Path(spec), root() / "studies" / f"{spec}.yaml", root() / str(spec)]
    for file in candidates:
        if file.is_file():
            return file
    raise unknown("study", Path(spec).stem, [f.stem for f in all_studies()])


def distinct(specs: Iterable[str | Path]) -> list[Study]:
    """The studies of these files or names, each file once. Raises: WorkbenchError for two files of one name, which
    the store could not tell apart."""
    files: dict[str, Path] = {}
    for file in map(find_study, specs):
        if files.setdefault(file.stem, file.resolve()) != file.resolve():
            raise WorkbenchError(f"{files[file.stem]} and {file.resolve()} have one name, {file.stem}: rename one.")
    return [Study.load(file) for file in files.values()]


def all_studies() -> list[Path]:
    return sorted((root() / "studies").glob("*.yaml"))
