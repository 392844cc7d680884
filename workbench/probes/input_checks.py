"""What a network is judged on: tensors of finite values that vary, and whether they are normalised."""

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.probes.rules import Fault
from workbench.probes.shared import as_inputs, first_channels
from workbench.probes.signal import channels_second

MEAN, DEVIATIONS = 1.0, (0.1, 3.0)  # images from 0 to 1 that were not normalised are no cause of anything


def checked(x: object) -> list[Tensor]:
    """The tensors that a model gets. Raises: WorkbenchError for what is none, is not finite, or does not vary."""
    inputs = as_inputs(x)
    real = [t for t in inputs if t.is_floating_point()]
    if not all(t.isfinite().all() for t in real) or all(t.min() == t.max() for t in inputs):
        raise WorkbenchError("`x` must be of finite values that vary: look at how it is made.")
    return inputs


def described(inputs: list[Tensor]) -> str:
    """Shapes and types, in words."""
    kind = "images" if len(inputs) == 1 and inputs[0].ndim == 4 else "inputs"
    return f"{kind} of shape " + " and ".join(f"{tuple(t.shape)} and type {t.dtype}" for t in inputs)


def cure(model: nn.Module, inputs: list[Tensor]) -> str:
    """What to do where a network does not run on these."""
    reads, x = first_channels(model), inputs[0]
    if x.ndim == 4 and not x.is_floating_point():
        return "give images of real numbers, normalised: (x.float() - mean) / std"
    if x.ndim != 4 or reads is None or x.shape[1] == reads:
        return "mend that, or give what it is for: images; in Python also features (N, C), tokens (N, T) and tuples"
    return (
        f"the images have {_channels(x.shape[1])}, the first convolution reads {_channels(reads)}. Give images of "
        f"{_channels(reads)} (--data, or --in-channels {reads} for noise), or build the network for {x.shape[1]} "
        f"(-p in_channels={x.shape[1]}, where its function takes that)"
    )


def _channels(n: int) -> str:
    return f"{n} channel{'s' * (n > 1)}"


def scale(inputs: list[Tensor]) -> tuple[float, float, Tensor | None]:
    """Mean and standard deviation of the first input of real numbers, and itself; (0, 1, None) without one."""
    first = next((t for t in inputs if t.is_floating_point() and t.ndim > 1), None)
    if first is None:
        return 0.0, 1.0, None
    std, mean = torch.std_mean(first.detach().cpu().double())
    return mean.item(), std.item(), first


def is_usual(mean: float, std: float) -> bool:
    """Whether nobody would blame an input of this mean and standard deviation."""
    return abs(mean) <= MEAN and DEVIATIONS[0] <= std <= DEVIATIONS[1]


def normalised(x: Tensor, channels: int | None) -> Tensor:
    """A copy with mean 0 and variance 1 in each channel that varies."""
    out = x.detach().clone()
    view = channels_second(out, channels)
    over = [d for d in range(view.ndim) if d != 1]
    std, mean = torch.std_mean(view, over, correction=0, keepdim=True)
    view.sub_(mean).div_(torch.where(std > 0, std, 1.0))
    return out


def not_normalised(mean: float, std: float) -> Fault:
    """The fault of an input with this mean and standard deviation."""
    return Fault(
        "input",
        "not normalised",
        f"its mean is {mean:.3g} and its standard deviation {std:.3g}, where weights are drawn for 0 and 1; the table, "
        "and what else is named, are of this input normalised",
        "subtract the mean of the training data and divide by their standard deviation, channel by channel",
    )
