"""What the measurements that differentiate a loss have in common: the model left as found, and early refusals."""

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from workbench.errors import WorkbenchError
from workbench.optim.scope import refuse_open


@contextlib.contextmanager
def left_unchanged(model: nn.Module) -> Iterator[None]:
    """At its end, however it ends, the buffers and the random state of torch (CPU, the model's GPUs) are as before it.

    A graph that was made before it may still be differentiated after it.
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
            buffer.data.copy_(before)  # without .data, autograd would take the buffer for changed


def as_inputs(x: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """What a model gets, as model(*inputs): of a tensor itself. Raises: WorkbenchError for what are no tensors."""
    inputs = list(x) if isinstance(x, (tuple, list)) else [x]
    if inputs and all(isinstance(t, Tensor) and t.ndim > 0 and len(t) > 0 for t in inputs):
        return inputs
    shown = [f"a tensor of shape {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__ for t in inputs]
    raise WorkbenchError(
        f"`x` must be a tensor (N, ...), or a tuple of them for a model called as model(*x), not {', '.join(shown)}: "
        "wrap a model that takes something else in a module that takes tensors."
    )


def refuse_lazy(model: nn.Module) -> None:
    """Raises: WorkbenchError for a model with lazy modules, which the first forward pass would change for good."""
    for name, module in model.named_modules():
        if any(is_lazy(p) for p in chain(module.parameters(recurse=False), module.buffers(recurse=False))):
            raise WorkbenchError(
                f"{name} ({type(module).__name__}) is lazy: it has no weights until data went through it. Run the "
                "model once, model(x), before it is measured."
            )


def first_channels(model: nn.Module) -> int | None:
    """The channels of the images that a network takes: those that its first convolution reads; None without one."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 4 and not isinstance(module, nn.ConvTranspose2d):
            return weight.shape[1] * getattr(module, "groups", 1)
    return None


def measured_parameters(model: nn.Module, what: str) -> list[nn.Parameter]:
    """The parameters that require a gradient.

    Raises: WorkbenchError where there are none, within standardized_once, and without scipy.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise WorkbenchError(f"{what} needs a parameter that requires a gradient: call model.requires_grad_().")
    refuse_open(params, f"{what} cannot be measured")
    if importlib.util.find_spec("scipy") is None:
        raise WorkbenchError(f"{what} needs scipy: `pip install scipy`.")
    return params


def checked_loss(loss: Tensor, cure: str) -> Tensor:
    """The loss itself. Raises: WorkbenchError unless it is one finite number with the graph that made it."""
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad and loss.isfinite():
        return loss
    if not isinstance(loss, Tensor):
        shown = type(loss).__name__
    elif loss.numel() != 1:
        shown = f"a tensor of shape {tuple(loss.shape)}"
    else:
        shown = f"{loss.item():.4g}" + ("" if loss.requires_grad else ", which does not depend on the parameters")
    raise WorkbenchError(f"the loss must be a tensor of one finite number with its graph, not {shown}: {cure}.")
