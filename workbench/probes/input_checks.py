"""Check the inputs of a pre-flight: finite values that vary, and normalisation."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.probes.rules import Fault
from workbench.probes.shared import as_inputs, first_channels
from workbench.probes.signal import channels_second

MEAN, DEVIATIONS = 1.0, (0.1, 3.0)  # allowed; images from 0 to 1 that are not normalised do no harm


def checked(x: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Check the inputs of a model.

    Args:
        x: A tensor, or several for a model that is called as model(*x).

    Returns:
        The tensors.

    Raises:
        WorkbenchError: If `x` holds anything but tensors, values that are not finite, or no values that vary.
    """
    inputs = as_inputs(x)
    real = [t for t in inputs if t.is_floating_point()]
    if not all(t.isfinite().all() for t in real) or all(t.min() == t.max() for t in inputs):
        raise WorkbenchError("`x` must hold finite values that vary. Check how it is made.")
    return inputs


def described(inputs: list[Tensor]) -> str:
    """Describe the shapes and types of inputs in words."""
    kind = "images" if len(inputs) == 1 and inputs[0].ndim == 4 else "inputs"
    return f"{kind} of shape " + " and ".join(f"{tuple(t.shape)} and type {t.dtype}" for t in inputs)


def cure(model: nn.Module, inputs: list[Tensor]) -> str:
    """Say what to do if a network does not run on these inputs."""
    reads, x = first_channels(model), inputs[0]
    if x.ndim == 4 and not x.is_floating_point():
        return "Give normalised images of real numbers: (x.float() - mean) / std"
    if x.ndim != 4 or reads is None or x.shape[1] == reads:
        return "Correct that, or give other inputs: images, and in Python also features (N, C), tokens (N, T) or tuples"
    return (
        f"The images have {_channels(x.shape[1])}, but the first convolution reads {_channels(reads)}: give images "
        f"with {_channels(reads)} (--data, or --in-channels {reads} for noise), or build the network for {x.shape[1]} "
        f"(-p in_channels={x.shape[1]}, if its function takes that)"
    )


def _channels(n: int) -> str:
    return f"{n} channel{'s' * (n > 1)}"


def scale(inputs: list[Tensor]) -> tuple[float, float, Tensor | None]:
    """Return mean and standard deviation of the first floating-point input, and that input.

    Returns:
        (mean, deviation, input), or (0, 1, None) if no floating-point input exists.
    """
    first = next((t for t in inputs if t.is_floating_point() and t.ndim > 1), None)
    if first is None:
        return 0.0, 1.0, None
    std, mean = torch.std_mean(first.detach().cpu().double())
    return mean.item(), std.item(), first


def is_usual(mean: float, std: float) -> bool:
    """Return whether mean and standard deviation are near enough to normalised ones."""
    return abs(mean) <= MEAN and DEVIATIONS[0] <= std <= DEVIATIONS[1]


def normalised(x: Tensor, channels: int | None) -> Tensor:
    """Return a copy with mean 0 and variance 1 in each channel that varies.

    Args:
        x: Input of any shape with channels.
        channels: Dimension of the channels, as in `signal_propagation`.

    Returns:
        The normalised copy.
    """
    out = x.detach().clone()
    view = channels_second(out, channels)
    over = [d for d in range(view.ndim) if d != 1]
    std, mean = torch.std_mean(view, over, correction=0, keepdim=True)
    view.sub_(mean).div_(torch.where(std > 0, std, 1.0))
    return out


def not_normalised(mean: float, std: float) -> Fault:
    """Make the fault of an input with this mean and standard deviation."""
    return Fault(
        "input",
        "not normalised",
        f"its mean is {mean:.3g} and its standard deviation {std:.3g}, but the weights are drawn for 0 and 1; the "
        "table and all other faults are measured on this input after normalisation",
        "subtract the mean of the training data and divide by their standard deviation, channel by channel",
    )
