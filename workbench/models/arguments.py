"""Rules for the arguments of a network. Bad values are refused before anything is built."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench.errors import WorkbenchError

Rule = tuple[Callable[[Any], bool], str]  # (whether a value is allowed, what is allowed)


def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _wholes(value, least: int = 1) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(_whole(v, least) for v in value)


_SWITCH: Rule = (lambda v: isinstance(v, bool), "True or False")
_SHARE: Rule = (lambda v: _number(v) and 0 <= v < 1, "a number of at least 0 and below 1")
RULES: dict[str, Rule] = {
    "num_classes": (lambda v: _whole(v, 0), "a whole number of at least 0 (0: no classifier)"),
    "in_channels": (lambda v: _whole(v, 1), "a whole number of at least 1"),
    "activation": (lambda v: isinstance(v, str) or callable(v), "a name or a function"),
    "norm": (lambda v: v in ("batch", "group"), "'batch' or 'group'"),
    "alpha": (lambda v: _number(v) and v > 0, "a number above 0"),
    "se_ratio": (lambda v: v is None or (_number(v) and 0 <= v <= 1), "a number from 0 (no gates) to 1"),
    "stochastic_depth": _SHARE,
    "dropout": _SHARE,
    "skip_gain": (_number, "a finite number"),
    "width": (lambda v: _number(v) and v > 0, "a number above 0"),
    "expansion": (lambda v: _number(v) and v > 0, "a number above 0"),
    "mid_ratio": (lambda v: _number(v) and v > 0, "a number above 0"),
    "group_size": (lambda v: v is None or _whole(v, 1), "a whole number of at least 1"),
    "final_channels": (lambda v: _whole(v, 0), "a whole number of at least 0"),
    "widths": (_wholes, "whole numbers above 0, one per stage"),
    "depth": (_wholes, "whole numbers above 0, one per stage"),
    "stem": (_wholes, "whole numbers above 0"),
    "stem_strides": (lambda v: _wholes(v) and set(v) <= {1, 2}, "strides of 1 or 2, one per convolution"),
    "stem_kernel": (lambda v: _whole(v, 1) and v % 2 == 1, "an odd whole number"),
    **dict.fromkeys(("two_convs", "pool", "standardize", "he_init", "regnet"), _SWITCH),
}


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Check arguments of a network, by name. Names without a rule pass.

    Raises:
        WorkbenchError: For the first argument that breaks its rule.
    """
    for name, value in arguments.items():
        holds, rule = RULES.get(name, (lambda _: True, ""))
        if not holds(value):
            raise WorkbenchError(f"`{name}` must be {rule}, got {value!r}.")
    depth, widths = arguments.get("depth"), arguments.get("widths")
    if widths is not None and depth is not None and len(widths) != len(depth):
        raise WorkbenchError(f"`widths` must have one number for each of the {len(depth)} stages, got {widths!r}.")
    stem, strides = arguments.get("stem"), arguments.get("stem_strides")
    if strides is not None and (stem is None or len(strides) != len(stem) + 1):
        raise WorkbenchError(
            f"`stem_strides` must have one number more than `stem` ({stem!r}), got {strides!r}. "
            "The width of the stem's last convolution comes from the first stage."
        )
