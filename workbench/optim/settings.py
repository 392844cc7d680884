"""The clipping settings of parameter groups, and what a saved optimizer state keeps of them.

The values of a group win over the arguments of AGC. A saved state is data and holds no functions. Each of its groups
has these keys:

    clip             the threshold: a number, or None (exempt). It is missing if the threshold is a function.
    clip_function    the name of the function, if the threshold is one
    clip_eps         the lower bound on |W_i|
    clip_step        the number of steps so far, which functions of the step read
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from workbench.errors import WorkbenchError, shown

Clip = float | Callable[[int], float]  # a number, or a function of the step, counted from 0
KEPT = ("clip", "clip_eps", "names", "units")  # keys that stay if a loaded state lacks them

SETTINGS = {  # of a group: whether zero is allowed, and what to use instead of a wrong value
    "clip": (False, "a finite number above 0, a function of the step, or None", "Use None to clip nothing."),
    "clip_eps": (False, "a finite number above 0", "The paper uses 0.001."),
    "weight_decay": (True, "a finite number of at least 0", "Use 0 for no decay."),
    "lr": (True, "a finite number of at least 0", "Use 0 to train nothing in the group."),
}


def check_setting(name: str, value: Any, where: str = "") -> None:
    """Check a setting of a parameter group.

    Args:
        name: A key of `SETTINGS`.
        value: Its value.
        where: Where it stands, for the error message.

    Raises:
        WorkbenchError: For a value that is not a number, not finite, or too small.
    """
    zero_is_allowed, rule, cure = SETTINGS[name]
    if name == "clip" and (value is None or callable(value)):
        return
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not 0 <= number < math.inf or (number == 0 and not zero_is_allowed):
        raise WorkbenchError(f"`{name}`{where} must be {rule}, got {shown(value, 80)}. {cure}")


def threshold(group: Mapping[str, Any], number: int, default: Clip) -> Clip | None:
    """Return the threshold of a group. None exempts it.

    Args:
        group: The parameter group.
        number: Its place in the optimizer, for the error message.
        default: The threshold of a group without "clip".

    Raises:
        WorkbenchError: If the group comes from a saved state that lost its function.
    """
    if "clip" not in group and "clip_function" in group and not callable(default):
        raise WorkbenchError(
            f'"clip" of {_name(group, number)} was the function {group["clip_function"]}, which a saved state cannot '
            'hold. Set group["clip"] to the function again, or make AGC before load_state_dict.'
        )
    return group.get("clip", default)


def refuse_second_value(groups: Iterable[Mapping], argument: str, key: str, value: Clip | None) -> None:
    """Refuse an argument of AGC that differs from the value of a group that is not exempt (None)."""
    for i, group in enumerate(groups):
        group_value = group.get(key)
        if value is None or group_value is None or group_value == value:
            continue
        raise WorkbenchError(
            f'`{argument}` of AGC must equal "{key}" of {_name(group, i)}, got {_shown(value)} and '
            f"{_shown(group_value)}. Set it in the groups, as param_groups does, and leave `{argument}` out of AGC."
        )


def with_settings(state: dict, clip: Clip, eps: float, steps: int) -> dict:
    """Return a saved state whose groups hold all settings and the step count, but no functions.

    Args:
        state: The state of an optimizer. It stays unchanged.
        clip: The threshold of groups without "clip".
        eps: The lower bound of groups without "clip_eps".
        steps: The number of steps so far.
    """
    groups = []
    for group in state["param_groups"]:
        value = group.get("clip", clip)
        kept = {"clip_eps": eps, **group, "clip_step": steps}
        if callable(value):
            kept.pop("clip", None)
            kept["clip_function"] = _shown(value)
        elif "clip" in group or "clip_function" not in group:
            kept["clip"] = value
        groups.append(kept)
    return {**state, "param_groups": groups}


def refuse_lost_functions(groups: Iterable[Mapping], saved: Iterable[Mapping], default: Clip) -> None:
    """Refuse to load a state whose threshold is a function into groups that have none.

    Args:
        groups: The groups of the optimizer.
        saved: The groups of the state.
        default: The threshold of groups without "clip".
    """
    for i, (group, old) in enumerate(zip(groups, saved, strict=False)):  # torch refuses another number of groups
        value = group.get("clip", default)
        if "clip" in old or "clip_function" not in old or callable(value):
            continue
        raise WorkbenchError(
            f'"clip" of {_name(group, i)} is the function {old["clip_function"]} in the loaded state, but '
            f'{_shown(value)} in this optimizer. Set group["clip"] to the function before load_state_dict, or set '
            '"clip" in the groups of the state.'
        )


def settings_of(groups: Iterable[Mapping]) -> list[dict]:
    """Return the settings that the groups have, to compare them with those of a loaded state."""
    return [{k: group[k] for k in KEPT if k in group} for group in groups]


def restore(groups: Sequence[dict], before: Sequence[dict], clip: Clip, eps: float) -> None:
    """Complete groups that were just loaded. Warn if loaded values differ from those before.

    Args:
        groups: The loaded groups. Keys that they lack are set again, functions too.
        before: The result of `settings_of` before loading.
        clip: The threshold of groups without "clip".
        eps: The lower bound of groups without "clip_eps".
    """
    for i, (group, old) in enumerate(zip(groups, before, strict=True)):
        function = group.pop("clip_function", None)
        for key, default in (("clip", clip), ("clip_eps", eps)):
            ours = old.get(key, default)
            if key not in group:
                if key == "clip" and function not in (None, _shown(ours)):
                    _warn_of_two_values(key, group, i, loaded=function, ours=_shown(ours), applies=_shown(ours))
            elif group[key] != ours:
                loaded = _shown(group[key])
                _warn_of_two_values(key, group, i, loaded=loaded, ours=_shown(ours), applies=loaded)
            elif key not in old:
                del group[key]  # the argument of AGC gives the same value
        for key, value in old.items():
            group.setdefault(key, value)


def take_steps(groups: Iterable[dict]) -> int | None:
    """Remove the step count from loaded groups and return it. None if they have none."""
    counts = [group.pop("clip_step") for group in groups if "clip_step" in group]
    return max(counts, default=None)


def _warn_of_two_values(key: str, group: Mapping, number: int, *, loaded: str, ours: str, applies: str) -> None:
    warnings.warn(
        f'"{key}" of {_name(group, number)} is {loaded} in the loaded state and {ours} in this optimizer, and '
        f'{applies} applies. Set group["{key}"] after load_state_dict to change it.',
        stacklevel=2,
    )


def _name(group: Mapping, number: int) -> str:
    return f"parameter group '{group.get('name', number)}'"


def _shown(value: Any) -> str:
    return str(getattr(value, "__name__", type(value).__name__)) if callable(value) else str(value)
