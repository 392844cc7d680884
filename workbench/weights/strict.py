"""Loads weights by name, all of them or none."""

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError

SHOWN = 5  # names in one complaint


def load_strictly(model: nn.Module, state: dict[str, Tensor], labels: dict[str, str] | None = None) -> None:
    """Copy `state` into the parameters and buffers of `model`.

    Args:
        model: The network.
        state: {name of the parameter or buffer: tensor}.
        labels: Names to use in an error message, by the names of `state`.

    Raises:
        WorkbenchError: If tensors are missing, extra, of the wrong shape or not floating point. Nothing is copied then.
    """
    check_fits(model, state, labels or {})
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            tensor.copy_(state[name])


def check_fits(model: nn.Module, state: dict[str, Tensor], labels: dict[str, str]) -> None:
    """Check that `state` fits this model, which may be on the device meta.

    Raises:
        WorkbenchError: If tensors are missing, extra, of the wrong shape or not floating point.
    """
    faults = complaints(model, state, labels)
    if faults:
        raise WorkbenchError(f"The weights do not fit {type(model).__name__}: {'; '.join(faults)}.")


def complaints(model: nn.Module, state: dict[str, Tensor], labels: dict[str, str]) -> list[str]:
    """List what is wrong with `state` for this model. Empty if it fits."""
    needed = model.state_dict(keep_vars=True)
    missing = [labels.get(name, name) for name in needed if name not in state]
    extra = [labels.get(name, name) for name in state if name not in needed]
    shared = [name for name in needed if name in state]
    misshapen = [
        f"{labels.get(name, name)} is {_shape(state[name])}, must be {_shape(needed[name])}"
        for name in shared
        if state[name].shape != needed[name].shape
    ]
    wrong = [
        f"{labels.get(name, name)} is {state[name].dtype}"
        for name in shared
        if needed[name].is_floating_point() and not state[name].is_floating_point()
    ]
    kinds = (("missing", missing), ("extra", extra), ("wrong shape", misshapen), ("not floating point", wrong))
    return [f"{kind}: {_some(names)}" for kind, names in kinds if names]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _some(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
