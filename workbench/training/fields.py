"""Declare the fields of a configuration and check their values.

A field has its default, meaning, bounds and choices in one place.
"""

import dataclasses
import math
import operator
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from workbench.errors import WorkbenchError, shown, unknown

BOUNDS = {"above": operator.gt, "at_least": operator.ge, "below": operator.lt, "at_most": operator.le}


def knob(
    default: Any,
    meaning: str,
    *,
    choices: tuple[str, ...] = (),
    needs: str | None = None,
    execution: bool = False,
    **bounds: float,
) -> Any:
    """Declare a field of a dataclass, with its meaning and its rules.

    Args:
        default: The default value. A type means an empty value of that type.
        meaning: What the field sets, for readers and for error messages.
        choices: The allowed values. Empty: all values.
        needs: Another field that must be set if this field is set.
        execution: Whether the field controls how a training runs and not what it computes.
        **bounds: `above`, `at_least`, `below` and `at_most`. A bounded value must also be finite.

    Returns:
        The field, for a class body.
    """
    metadata = {"meaning": meaning, "choices": choices, "needs": needs, "execution": execution, "bounds": bounds}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def checked(field: dataclasses.Field, value: object) -> object:
    """Check a value and convert it to the type of its field.

    Args:
        field: A field that `knob` declared.
        value: A plain value, or a number of numpy.

    Returns:
        The value as a plain Python value; an int becomes a float if the field is a float.

    Raises:
        WorkbenchError: If the type is wrong, or the value is outside the bounds or choices.
    """
    if isinstance(value, np.generic):  # from a table; a checkpoint takes plain numbers only
        value = value.item()
    if field.type in (float, float | None) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)  # 1 and 1.0 are one configuration, with one key
    _check_type(field, value)
    bounds, choices = field.metadata["bounds"], field.metadata["choices"]
    if bounds and value is not None and not _within(cast(float, value), bounds):  # only numbers have bounds
        *others, last = ["finite", *(f"{name.replace('_', ' ')} {limit:g}" for name, limit in bounds.items())]
        rule = f"{', '.join(others)} and {last}"
        raise WorkbenchError(f"`{field.name}` must be {rule}, got {value}. Meaning: {field.metadata['meaning']}.")
    if choices and value not in choices:
        raise unknown(field.name, str(value), choices)
    return value


def unmet_needs(config: Any) -> Iterator[str]:
    """Yield an error message for each field that is set without the field that it needs."""
    for field in dataclasses.fields(config):
        needs, value = field.metadata["needs"], getattr(config, field.name)
        if needs and _is_set(value) and not _is_set(getattr(config, needs)):
            yield f"`{field.name}` (={value}) needs `{needs}`. Set `{needs}` too, or leave out `{field.name}`."


def _check_type(field: dataclasses.Field, value: object) -> None:
    bool_for_number = isinstance(value, bool) and field.type not in (bool, bool | None)  # bool is a subclass of int
    if isinstance(value, cast(Any, field.type)) and not bool_for_number:  # a type: annotations here are evaluated
        return
    hint = " Write null for no value." if str(value).lower() in ("none", "null", "no", "off", "") else ""
    kind = getattr(field.type, "__name__", field.type)
    raise WorkbenchError(f"`{field.name}` must be of type {kind}, got {shown(value)}.{hint}")


def _within(value: float, bounds: dict[str, float]) -> bool:
    return -math.inf < value < math.inf and all(BOUNDS[name](value, limit) for name, limit in bounds.items())


def _is_set(value: object) -> bool:
    return value is not None and value is not False
