"""A notebook's parameters, read from its file without starting a kernel, and checked before anything runs."""

import ast
import io
import json
import math
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from workbench.errors import WorkbenchError, unknown


@dataclass(frozen=True)
class Range:
    """The values between `low` and `high`, sampled evenly or, with `log`, evenly in the logarithm."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self):
        if not self.low < self.high or (self.log and self.low <= 0):
            raise WorkbenchError(
                f"a range needs low (={self.low}) below high (={self.high}), and low above 0 when log is true."
            )

    @classmethod
    def of(cls, value: "Range | dict") -> "Range":
        """A range as it is or as a dictionary of its fields."""
        return value if isinstance(value, cls) else cls(**value)

    def share_below(self, value: float) -> float:
        """How much of the range lies below a value, on its scale: 0 at `low`, 1 at `high`."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (value - low) / (high - low)


TYPES = {
    "Range": Range | dict,
    "int": int,
    "PositiveInt": PositiveInt,
    "NonNegativeInt": NonNegativeInt,
    "float": float,
    "PositiveFloat": PositiveFloat,
    "NonNegativeFloat": NonNegativeFloat,
    "str": str,
    "bool": bool,
    "list": list,
    "dict": dict,
}


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell: `name: annotation = default  # comment`."""

    name: str
    annotation: str
    default: Any
    comment: str

    def check(self, value: Any) -> Any:
        """The value as the annotation has it. Raises: WorkbenchError where it does not fit, and for an empty list
        where the default names something."""
        if isinstance(value, dict) and "Range" in self.annotation:
            return _checked_range(self.name, value)
        if value == [] and self.default:
            raise WorkbenchError(
                f"parameter `{self.name}` (=[]) must have at least one entry: for example {self.default!r}."
            )
        if not all(math.isfinite(number) for number in _numbers(value)):
            raise WorkbenchError(f"parameter `{self.name}` (={value!r}) must be finite: for example {self.default!r}.")
        try:
            return TypeAdapter(_type_of(self.annotation)).validate_python(value, strict=True)
        except ValidationError:
            choices = _choices(self.annotation)
            for text in _strings(value) if choices else ():
                if text not in choices:
                    raise unknown(f"value of the parameter `{self.name}`", text, choices) from None
            cure = f"for example {self.default!r}"
            if isinstance(value, str) and _is_number(value) and math.isfinite(float(value)):
                number = float(value)
                whole = not self._fractions() and number.is_integer()
                cure = f"YAML reads {value} as text: write {int(number) if whole else number!r}"
            raise WorkbenchError(
                f"parameter `{self.name}` (={value!r}) must be of type {self.annotation}: {cure}."
            ) from None

    def parse(self, text: str) -> Any:
        """The value that `-p name=text` stands for."""
        import yaml

        if self.annotation.replace(" ", "") in ("str", "str|None") and text != "null":
            return text
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        return self.check(float(value) if isinstance(value, str) and _is_number(value) and self._fractions() else value)

    def _fractions(self) -> bool:
        return "float" in self.annotation.lower()


def _numbers(value: Any) -> list[float]:
    """The floating-point numbers in a value, its lists and its dictionaries."""
    if isinstance(value, dict | list):
        return [n for one in (value.values() if isinstance(value, dict) else value) for n in _numbers(one)]
    return [value] if isinstance(value, float) else []


def _strings(value: Any) -> list[str]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]


def _choices(annotation: str) -> list[str]:
    """What the Literals of an annotation name."""
    nodes = ast.walk(ast.parse(annotation))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook, in order, from its cell tagged `parameters`; starts no kernel.

    Raises: WorkbenchError for a missing file or cell, and for a line that is not `name: type = literal`.
    """
    source = _parameters_cell(notebook)
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise WorkbenchError(f"{notebook.name}, parameters cell, line {error.lineno}: {error.msg}.") from error
    comments = {
        t.start[0]: t.string.lstrip("# ")
        for t in tokenize.generate_tokens(io.StringIO(source).readline)
        if t.type == tokenize.COMMENT
    }
    parameters = {}
    for node in tree.body:
        try:
            if not isinstance(node, ast.AnnAssign) or node.value is None:
                raise ValueError
            annotation = (
                node.annotation.value if isinstance(node.annotation, ast.Constant) else ast.unparse(node.annotation)
            )
            parameters[node.target.id] = Parameter(
                node.target.id, annotation, ast.literal_eval(node.value), comments.get(node.end_lineno, "")
            )
        except ValueError:
            raise WorkbenchError(
                f"{notebook.name}, parameters cell: `{ast.unparse(node)}` must have the form "
                "`name: type = literal  # comment`."
            ) from None
    return parameters


def check_names(names, parameters: dict[str, Parameter], where: str) -> None:
    """Refuses a parameter that the notebook does not have, naming the nearest."""
    for name in names:
        if name not in parameters:
            raise unknown(f"parameter in {where}", name, parameters)


def code_cells(notebook: Path) -> list[str]:
    """The sources of a notebook's code cells."""
    return [_source(cell) for cell in _read(notebook)["cells"] if cell["cell_type"] == "code"]


def _parameters_cell(notebook: Path) -> str:
    for cell in _read(notebook)["cells"]:
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            return _source(cell)
    raise WorkbenchError(f"{notebook.name} has no cell with the tag `parameters`: tag the cell that holds its knobs.")


def _read(notebook: Path) -> dict:
    if not notebook.is_file():
        raise unknown("notebook", notebook.name, [f.name for f in notebook.parent.glob("*.ipynb")])
    try:
        content = json.loads(notebook.read_text())
        content["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise WorkbenchError(
            f"{notebook} is not a notebook ({error}): open it in JupyterLab and save it again."
        ) from error
    return content


def _source(cell: dict) -> str:
    return "".join(cell["source"])


def _type_of(annotation: str):
    try:
        return _built(ast.parse(annotation, mode="eval").body)
    except (SyntaxError, KeyError, TypeError, ValueError):
        known = ", ".join((*TYPES, "Literal[...]"))
        raise WorkbenchError(f"the annotation `{annotation}` must be made of {known}, None, | and [].") from None


def _built(node: ast.expr):
    """The type that an annotation names, without running it."""
    match node:
        case ast.Name(id=name):
            return TYPES[name]
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inside):
            return Literal[ast.literal_eval(inside)]
        case ast.Constant(value=None):
            return None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _built(left) | _built(right)
        case ast.Subscript(value=value, slice=inside):
            return _built(value)[_built(inside)]
        case ast.Tuple(elts=elements):
            return tuple(map(_built, elements))
    raise ValueError


def _checked_range(name: str, value: dict) -> dict:
    """The same dictionary, when it makes a Range; papermill can hand down only plain values."""
    for key in value:
        if key not in Range.__dataclass_fields__:
            raise unknown(f"key of the range `{name}`", key, Range.__dataclass_fields__)
    for key in ("low", "high"):
        if isinstance(value.get(key), bool) or not isinstance(value.get(key), int | float):
            raise WorkbenchError(
                f"`{name}.{key}` (={value.get(key)!r}) must be a number: a range is {{low: 0.1, high: 1.0, log: true}}."
            )
    Range(**value)
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
        return True
    except ValueError:
        return False
