"""A field of a configuration: its default, meaning, bounds and choices in one place, and the check that reads them."""

import dataclasses
import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError, unknown

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
    """Declare a field of a dataclass with all that is known of it.

    Args:
        default: The value where none is given. A type stands for an empty value of that type.
        meaning: What the field sets, for a reader and for error messages.
        choices: The only values that the field takes.
        needs: Another field that must be set where this one is.
        execution: Whether the field says where a training runs, and not what it computes.
        **bounds: `above`, `at_least`, `below` and `at_most`. A bounded value must also be finite.
    """
    metadata = {"meaning": meaning, "choices": choices, "needs": needs, "execution": execution, "bounds": bounds}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def checked(field: dataclasses.Field, value: object) -> object:
    """Return the value as its field keeps it: plain numbers, and a float where the field has one.

    Raises:
        WorkbenchError: If the type is wrong, or the value is outside of the bounds or choices.
    """
    if isinstance(value, np.generic):  # from a table; a checkpoint takes plain numbers only
        value = value.item()
    if field.type in (float, float | None) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)  # 1 and 1.0 are one configuration, with one key
    _check_type(field, value)
    bounds, choices = field.metadata["bounds"], field.metadata["choices"]
    if bounds and value is not None and not _within(value, bounds):
        rule = " and ".join([f"{name.replace('_', ' ')} {limit:g}" for name, limit in bounds.items()] + ["finite"])
        raise WorkbenchError(f"`{field.name}` (={value}) must be {rule}. Its meaning: {field.metadata['meaning']}.")
    if choices and value not in choices:
        raise unknown(field.name, value, choices)
    return value


def unmet_needs(config: Any) -> Iterator[str]:
    """Yield a sentence for each field that is set without the field that it needs."""
    for field in dataclasses.fields(config):
        needs, value = field.metadata["needs"], getattr(config, field.name)
        if needs and _is_set(value) and not _is_set(getattr(config, needs)):
            yield f"`{field.name}` (={value}) needs `{needs}`. Set `{needs}` too, or leave `{field.name}` out."


def _check_type(field: dataclasses.Field, value: object) -> None:
    a_bool = isinstance(value, bool) and field.type not in (bool, bool | None)  # which Python counts among the ints
    if isinstance(value, field.type) and not a_bool:
        return
    none = " (for none write null)" if str(value).lower() in ("none", "null", "no", "off", "") else ""
    kind = getattr(field.type, "__name__", field.type)
    raise WorkbenchError(f"`{field.name}` (={value!r}) must be of type {kind}{none}.")


def _within(value: float, bounds: dict[str, float]) -> bool:
    return -math.inf < value < math.inf and all(BOUNDS[name](value, limit) for name, limit in bounds.items())


def _is_set(value: object) -> bool:
    return value is not None and value is not False
