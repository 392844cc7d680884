"""Optimizers that wrap another one, and the one inside that updates the weights.

Accelerate, Opacus, Lookahead, two-step SAM and ZeRO wrap an optimizer. The `step` of such a wrapper may run no hooks,
or may change the gradients before it calls the inner `step`. The inner optimizer sees the final gradients.
"""

from collections.abc import Iterator

from torch.optim import Optimizer

from workbench.errors import WorkbenchError


def layers_of(optimizer: Optimizer) -> list[Optimizer]:
    """Return the optimizer and those that it wraps, outermost first. The last one updates the weights.

    Raises:
        WorkbenchError: If it is no optimizer, or wraps several of which none holds all parameters.
    """
    if not isinstance(optimizer, Optimizer):
        held = [f"Use the {type(v).__name__} in its attribute `{k}`." for k, v in _held(optimizer)]
        raise WorkbenchError(
            f"`optimizer` must be a torch.optim.Optimizer, got {type(optimizer).__name__}. "
            + (held or ["Wrap the optimizer: AGC(torch.optim.SGD(...))."])[0]
        )
    layers = [optimizer]
    while (inner := _wrapped(layers[-1])) is not None:
        layers.append(inner)
    return layers


def parameters_of(optimizer: Optimizer) -> set[int]:
    """Return the ids of an optimizer's parameters."""
    return {id(p) for group in getattr(optimizer, "param_groups", ()) for p in group["params"]}


def refusal(optimizer: Optimizer) -> WorkbenchError:
    """Make the error for an optimizer whose `step` runs no hooks."""
    return WorkbenchError(
        f"`optimizer` must run step hooks, but {type(optimizer).__name__} does not: its __init__ does not call that of "
        "torch.optim.Optimizer. Call clip_grad_agc_(params) before each of its steps instead."
    )


def _wrapped(optimizer: Optimizer) -> Optimizer | None:
    """Return the optimizer inside that holds all parameters of the wrapper, or None."""
    trained = parameters_of(optimizer)
    held = list({id(inner): inner for _, inner in _held(optimizer)}.values())
    inside = [inner for inner in held if not trained or trained & parameters_of(inner)]
    whole = [inner for inner in inside if trained <= parameters_of(inner)]
    if any(base.__name__ == "ZeroRedundancyOptimizer" for base in type(optimizer).__mro__):
        whole = inside = held  # holds the part of this process
    if len(whole) == 1:
        return whole[0]
    if inside:
        names = " and ".join(type(inner).__name__ for inner in inside)
        raise WorkbenchError(
            f"`optimizer` must update all its parameters by one optimizer, but {type(optimizer).__name__} holds "
            f"{names}. Make one AGC for each of them."
        )
    return None


def _held(wrapper: object) -> Iterator[tuple[str, Optimizer]]:
    """Yield the optimizers in the attributes of an object, and in lists and dictionaries there."""
    for name, value in getattr(wrapper, "__dict__", {}).items():
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        yield from ((name, inner) for inner in values if isinstance(inner, Optimizer) and inner is not wrapper)
