"""The rules of a line of results. They hold before anything enters a store."""

import math
import re
from collections.abc import Callable
from typing import Any

from workbench.errors import WorkbenchError, shown
from workbench.outcomes import OUTCOMES

LABEL, CAUSE = 1000, 5000  # characters of a label and of a cause
LATEST = 1e11  # seconds since 1970
_NAME = re.compile(r"\w[\w.-]{0,199}", re.ASCII)  # names of metrics that every store takes


def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _seconds(value) -> bool:
    return _number(value) and math.isfinite(value) and 0 <= value <= LATEST


def _text(value, length: int = LABEL) -> bool:
    return isinstance(value, str) and len(value) <= length and "\0" not in value


def _metrics(value, steps: bool = False) -> bool:
    if not isinstance(value, dict) or not all(_NAME.fullmatch(name) for name in value):
        return False
    is_step = type(value.get("step")) is int and 0 <= value["step"] < 2**63
    return (is_step or not steps) and all(v is None or _number(v) or isinstance(v, bool) for v in value.values())


def _digests(value) -> bool:
    is_dict = isinstance(value, dict)  # the names become paths
    return is_dict and all(re.fullmatch(r"\w{1,100}", k) and _text(v) for k, v in value.items())


Rule = tuple[Callable[[Any], bool], str]
_LABEL: Rule = (_text, f"text of at most {LABEL} characters")
_LABEL_OR_NONE: Rule = (lambda v: v is None or _text(v), f"None or text of at most {LABEL} characters")
_SECONDS: Rule = (_seconds, f"a number of seconds from 0 to {LATEST:.0e}")
RULES: dict[str, Rule] = {
    "outcome": (lambda v: v in OUTCOMES, f"one of {', '.join(OUTCOMES)}"),
    "history": (
        lambda v: isinstance(v, list) and all(_metrics(row, steps=True) for row in v),
        "a list of rows of numbers with letters, digits, dots and dashes as names, each with a `step` below 2**63",
    ),
    "metrics": (_metrics, "numbers with letters, digits, dots and dashes as names"),
    "cause": (lambda v: v is None or _text(v, CAUSE), f"None or text of at most {CAUSE} characters"),
    "versions": (
        lambda v: isinstance(v, dict) and all(_text(k) and _text(each) for k, each in v.items()),
        "texts by name",
    ),
    "tables": (_digests, "hashes by names of letters and digits"),
    **dict.fromkeys(("seconds", "started", "ended"), _SECONDS),
    **dict.fromkeys(("device", "data_digest", "code", "layout", "role", "arm"), _LABEL),
    **dict.fromkeys(("study", "owner"), _LABEL_OR_NONE),
}


def check_line(values: dict[str, Any]) -> None:
    """Check the fields of a line. Fields without a rule pass.

    Raises:
        WorkbenchError: For the first field that breaks its rule.
    """
    for name, (holds, rule) in RULES.items():
        if name in values and not holds(values[name]):
            raise WorkbenchError(f"`{name}` must be {rule}, got {shown(values[name], 80)}.")
