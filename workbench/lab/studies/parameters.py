"""A notebook's parameters, read from its file without a kernel, and checked before it runs."""

import ast
import io
import math
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)

from workbench.errors import WorkbenchError, shown, unknown
from workbench.lab.studies.notebook_file import parameters_cell
from workbench.lab.studies.plain_yaml import load_yaml
from workbench.user_errors import description


@dataclass(frozen=True)
class Range:
    """The values between `low` and `high`, sampled uniformly.

    Attributes:
        low: The lowest value.
        high: The highest value.
        log: Whether the logarithm is sampled uniformly. Needs `low` above 0.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self):
        if not self.low < self.high or (self.log and self.low <= 0):
            raise WorkbenchError(
                f"a range needs low below high, got low={self.low} and high={self.high}. "
                "If log is true, low must be above 0."
            )

    @classmethod
    def of(cls, value: "Range | dict") -> "Range":
        """Return a range unchanged, or make one from a dictionary of its fields."""
        return value if isinstance(value, cls) else cls(**value)

    def share_below(self, value: float) -> float:
        """Return the share of the range below a value, on its scale: 0 at `low`, 1 at `high`."""
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

# What Python raises for a text or a literal that is damaged, nested too deep, or no plain value.
NOT_PYTHON = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell: `name: annotation = default  # comment`.

    Attributes:
        name: The parameter's name.
        annotation: Its type, as text made of the names in `TYPES`, `Literal[...]`, None, `|` and `[]`.
        default: Its default value.
        comment: The comment on its line.
    """

    name: str
    annotation: str
    default: Any
    comment: str

    def check(self, value: Any) -> Any:
        """Check a value against the annotation and return it.

        Raises:
            WorkbenchError: If the value does not fit, is not finite, or is an empty list while the default has entries.
        """
        if isinstance(value, dict) and "Range" in self.annotation:
            return _checked_range(self.name, value)
        if value == [] and self.default:
            raise WorkbenchError(
                f"parameter `{self.name}` must have at least one entry, got []. Use for example {self.default!r}."
            )
        if not all(math.isfinite(number) for number in _entries(value) if isinstance(number, float)):
            raise WorkbenchError(
                f"parameter `{self.name}` must be finite, got {shown(value)}. Use for example {self.default!r}."
            )
        try:
            return _adapter(self.annotation).validate_python(value, strict=True)
        except ValidationError:
            choices = _choices(self.annotation)
            for text in _entries(value) if choices else ():
                if isinstance(text, str) and text not in choices:
                    raise unknown(f"value of the parameter `{self.name}`", text, choices) from None
            raise WorkbenchError(
                f"parameter `{self.name}` must be of type {self.annotation}, got {shown(value)}. {self._cure(value)}."
            ) from None

    def parse(self, text: str) -> Any:
        """Return the value of the text in `-p name=text`.

        Raises:
            WorkbenchError: If the value does not fit the annotation.
        """
        if self.annotation.replace(" ", "") in ("str", "str|None") and text != "null":
            return text
        try:
            value = load_yaml(text, f"`{self.name}={shown(text, 80, quote=False)}`")
        except WorkbenchError:
            if not self._takes_text():
                raise
            value = text
        is_float = isinstance(value, str) and _is_number(value) and self._takes_fractions()
        return self.check(float(value) if is_float else value)

    def _takes_fractions(self) -> bool:
        return "float" in self.annotation.lower()

    def _takes_text(self) -> bool:
        return "str" in self.annotation or bool(_choices(self.annotation))

    def _cure(self, value: Any) -> str:
        """Return how to write the first entry that is a number of another kind, else an example."""
        whole = not self._takes_fractions()
        for entry in _entries(value):
            if isinstance(entry, str) and _is_number(entry) and math.isfinite(float(entry)):
                number = float(entry)
                better = int(number) if whole and number.is_integer() else number
                return f"YAML reads {entry} as text, so write {better!r}"
            if isinstance(entry, float) and whole and entry.is_integer():
                return f"Write {int(entry)} without a point or an exponent"
        return f"Use for example {self.default!r}"


def _entries(value: Any) -> list:
    """Return a value, or all values in its lists and its dictionaries."""
    if isinstance(value, dict | list):
        return [e for entry in (value.values() if isinstance(value, dict) else value) for e in _entries(entry)]
    return [value]


def _choices(annotation: str) -> list[str]:
    """Return the texts in the Literals of an annotation."""
    nodes = ast.walk(ast.parse(annotation))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """Read a notebook's parameters from its cell with the tag `parameters`, without a kernel.

    Returns:
        The parameters by name, in the order of the cell.

    Raises:
        WorkbenchError: If the file or the cell is missing, or a line is not `name: type = literal`.
    """
    source = parameters_cell(notebook)
    try:
        tree = ast.parse(source)
    except NOT_PYTHON as error:
        where = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise WorkbenchError(
            f"cannot read the parameters cell of {notebook.name}: {description(error)}{where}."
        ) from error
    comments = {
        t.start[0]: t.string.lstrip("# ")
        for t in tokenize.generate_tokens(io.StringIO(source).readline)
        if t.type == tokenize.COMMENT
    }
    parameters = {}
    for node in tree.body:
        try:
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
                raise ValueError
            annotation = node.annotation
            text = str(annotation.value) if isinstance(annotation, ast.Constant) else ast.unparse(annotation)
            comment = comments.get(node.end_lineno, "")
            parameters[node.target.id] = Parameter(node.target.id, text, ast.literal_eval(node.value), comment)
        except NOT_PYTHON:
            line = shown(ast.get_source_segment(source, node) or "", quote=False)
            raise WorkbenchError(
                f"a line of the parameters cell of {notebook.name} must have the form "
                f"`name: type = literal  # comment`, got `{line}`."
            ) from None
    return parameters


def check_names(names, parameters: dict[str, Parameter], where: str) -> None:
    """Check that a notebook has parameters with these names.

    Args:
        names: The names.
        parameters: The notebook's parameters, from `read_parameters`.
        where: Where the names come from, for the error message.

    Raises:
        WorkbenchError: If a name is unknown. The message has the nearest one.
    """
    for name in names:
        if name not in parameters:
            raise unknown(f"parameter in {where}", name, parameters)


def _adapter(annotation: str) -> TypeAdapter:
    try:
        return TypeAdapter(_built(ast.parse(annotation, mode="eval").body))
    except (*NOT_PYTHON, KeyError, PydanticUserError):
        known = ", ".join((*TYPES, "Literal[...]"))
        raise WorkbenchError(
            f"an annotation must be made of {known}, None, | and [], got `{shown(annotation, quote=False)}`."
        ) from None


def _built(node: ast.expr):
    """Return the type that an annotation names, without running it."""
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
    """Return a dictionary unchanged if it makes a Range.

    It is not converted, because papermill passes only plain values.

    Raises:
        WorkbenchError: If it does not make a Range.
    """
    for key in value:
        if key not in Range.__dataclass_fields__:
            raise unknown(f"key of the range `{name}`", key, Range.__dataclass_fields__)
    for key in ("low", "high"):
        if isinstance(value.get(key), bool) or not isinstance(value.get(key), int | float):
            raise WorkbenchError(
                f"`{name}.{key}` must be a number, got {shown(value.get(key))}. "
                "Write a range as {low: 0.1, high: 1.0, log: true}."
            )
    Range(**value)
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
        return True
    except ValueError:
        return False
