"""Helpers of the measurements: keep the model unchanged, and check arguments early."""

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from workbench.errors import WorkbenchError
from workbench.optim.scope import refuse_open


@contextlib.contextmanager
def left_unchanged(model: nn.Module) -> Iterator[None]:
    """Restore the model's buffers and torch's random state at the end of the context.

    This holds even after an error. The random state is that of the CPU and of the model's GPUs. A graph that was made
    before the context can still be differentiated after it.
    """
    kept = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    gpus = {t.device for t in chain(model.parameters(), model.buffers()) if t.is_cuda}
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        for buffers, name, buffer, before in kept:
            buffers[name] = buffer
            buffer.data.copy_(before)  # .data hides the write from autograd, which would refuse older graphs


def as_inputs(x: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return the inputs of a model as a list, for model(*inputs).

    Args:
        x: A tensor (N, ...), or a tuple or list of tensors.

    Returns:
        The tensors.

    Raises:
        WorkbenchError: If there is no tensor, one is empty, or an input is not a tensor.
    """
    inputs: list[Tensor] = list(x) if isinstance(x, (tuple, list)) else [cast(Tensor, x)]
    if inputs and all(isinstance(t, Tensor) and t.ndim > 0 and len(t) > 0 for t in inputs):
        return inputs
    shown = [f"a tensor of shape {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__ for t in inputs]
    raise WorkbenchError(
        f"`x` must be a tensor (N, ...), or a tuple of tensors for model(*x), got {', '.join(shown) or 'nothing'}. "
        "Wrap a model with other inputs in a module that takes tensors."
    )


def refuse_lazy(model: nn.Module) -> None:
    """Check that a model has no lazy modules.

    The first forward pass would change them for good.

    Raises:
        WorkbenchError: If a module is lazy.
    """
    for name, module in model.named_modules():
        if any(is_lazy(p) for p in chain(module.parameters(recurse=False), module.buffers(recurse=False))):
            raise WorkbenchError(
                f"{name} ({type(module).__name__}) is lazy, so it has no weights before its first forward pass. Run "
                "the model once, model(x), before you measure it."
            )


def first_channels(model: nn.Module) -> int | None:
    """Return how many channels the first convolution reads; None without a convolution."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 4 and not isinstance(module, nn.ConvTranspose2d):
            return weight.shape[1] * getattr(module, "groups", 1)
    return None


def measured_parameters(model: nn.Module, what: str) -> list[nn.Parameter]:
    """Return the parameters that require a gradient.

    Args:
        model: The model.
        what: Name of the measurement, for error messages.

    Returns:
        The parameters.

    Raises:
        WorkbenchError: If no parameter requires a gradient, the call is within `standardized_once`, or scipy is
            missing.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise WorkbenchError(f"{what} needs a parameter that requires a gradient. Call model.requires_grad_().")
    refuse_open(params, f"{what} cannot be measured")
    if importlib.util.find_spec("scipy") is None:
        raise WorkbenchError(f"{what} needs scipy. Install it with `pip install scipy`.")
    return params


def checked_loss(loss: Tensor, cure: str) -> Tensor:
    """Check that a loss is one finite number with the graph that made it.

    Args:
        loss: The loss.
        cure: What to do otherwise: a sentence without a full stop, for the error message.

    Returns:
        The loss.

    Raises:
        WorkbenchError: If the check fails.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad and loss.isfinite():
        return loss
    if not isinstance(loss, Tensor):
        shown = type(loss).__name__
    elif loss.numel() != 1:
        shown = f"a tensor of shape {tuple(loss.shape)}"
    else:
        shown = f"{loss.item():.4g}" + ("" if loss.requires_grad else ", which does not depend on the parameters")
    raise WorkbenchError(f"the loss must be a tensor of one finite number with its graph, got {shown}. {cure}.")
