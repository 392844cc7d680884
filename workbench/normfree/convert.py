"""The normalizer-free version of any network with BatchNorm.

Source: NFNet paper, section 2. Every block becomes h + alpha * skip_gain * f(h / beta), with scaled weight-standardised
convolutions. The network's code does not matter: surgery.py replaces leaf modules. Gamma, beta and alpha are constants
in the new modules, which survey.py finds by running the network.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._pytree import tree_map

from workbench.copies import copied
from workbench.errors import WorkbenchError, unknown
from workbench.normfree.fused_norms import check_norm
from workbench.normfree.operations import Operations, difference
from workbench.normfree.shadows import tensors_in
from workbench.normfree.standardized_convs import StandardizedCall
from workbench.normfree.surgery import Row, operate, place
from workbench.normfree.survey import End, Survey, Surveyor
from workbench.user_errors import description, place_of

_NO_CONVOLUTION = "{} has no convolution whose weights can be standardised. Use a network with convolutions."


@dataclass
class NormFree:
    """A converted network and the report of the conversion.

    Attributes:
        model: The new network.
        report: One row per module that was replaced or left: path, was, became, scale, note.
        blocks: One row per residual block: path, gain (the module that ends the branch), scale, and variance. The
            variance is that of the trunk after the block, expected at skip gain 1.
        undone: Sentences about what could not be done.
    """

    model: nn.Module
    report: pd.DataFrame
    blocks: pd.DataFrame
    undone: list[str]

    def __str__(self) -> str:
        replaced = self.report["was"] != self.report["became"]
        counts = cast(pd.Series, self.report["became"][replaced]).value_counts()
        made = ", ".join(f"{n} {name}" for name, n in counts.items())
        lines = [f"{type(self.model).__name__} without BatchNorm, {len(self.blocks)} residual blocks: {made}."]
        for key, rows in self.report[~replaced].groupby(["was", "note"], sort=False):
            was, note = cast(tuple, key)
            lines.append(f"left: {len(rows)} {was}, {note} ({', '.join(rows['path'][:2])}{', ...' * (len(rows) > 2)})")
        return "\n".join(lines + [f"not done: {sentence}" for sentence in self.undone])


def normfree(
    model: nn.Module,
    x: Tensor | tuple | None = None,
    *,
    alpha: float = 0.2,
    skip_gain: float = 0.0,
    variances: Mapping[str, float] | None = None,
    blocks: Collection[str] | None = None,
) -> NormFree:
    """Make the normalizer-free version of a network, as a copy.

    The network itself does not change.

    Weights are kept and standardised. Units of equal weights are drawn again. The weight and bias of a BatchNorm right
    after a convolution become the gain and bias of the convolution. A BatchNorm weight of zeros is not kept, because
    the skip gain replaces it. Linear layers and other norms stay.

    What a BatchNorm class does besides normalising stays, too, such as an activation. On one input, the copy must run
    the same activations as the network, in the same order.

    Like the authors, this function ignores the effect of pools on the variance. Average pools shrink the variance of
    white noise and max-pools enlarge it. For images both effects are smaller.

    The constants are not in the state dict. Load a state dict only into a network that was made in the same way.

    Args:
        model: A network with BatchNorm modules.
        x: An input, or a tuple of all arguments, for running the copy. The copy runs in the mode of `model`, but
            without dropout. Only shapes matter. None stands for `example_input(model)`.
        alpha: The paper's alpha, which sets how much a residual branch adds.
        skip_gain: The initial value of the learnt skip gains. The paper's is 0.
        variances: {path of a block: measured variance of the trunk after it}, instead of the expected variances. These
            are the columns path and var of `signal_propagation`.
        blocks: Names of the modules whose additions end residual blocks. None means all additions that look like block
            ends.

    Returns:
        The new network and the report.

    Raises:
        WorkbenchError: If the network has no BatchNorm or no convolution, does not run on `x`, has lazy or TorchScript
            modules, or normalises by the batch in code without a module. Also if the copy would run other operations
            than the network, for unknown names, and for an `alpha` or a variance that is not positive.
    """
    _check(model, alpha, blocks)
    new = copied(model)
    modes = {module: module.training for module in new.modules()}
    buffers = {buffer: buffer.clone() for buffer in new.buffers()}
    for module in new.modules():
        if isinstance(module, _BatchNorm) or next(module.parameters(), None) is None:
            module.eval()  # dropout, stochastic depth
    x = example_input(new) if x is None else x
    inputs = x if isinstance(x, tuple) else (x,)
    with Operations(new, _maps(inputs)) as before:
        _run(new, inputs)

    modules, no_ends = dict(new.named_modules()), {}
    while True:  # an addition that turns out to be no block end changes the expected variances behind it
        survey = _survey(new, inputs, alpha=alpha, variances=variances or {}, blocks=blocks, skip=no_ends)
        more = {end.number: why for end in survey.ends if (why := _no_end(end, survey, modules)) is not None}
        if not more:
            break
        no_ends |= more
    _check_survey(new, survey, variances or {})

    places = [cast(str, place(end, survey, modules)) for end in survey.ends]  # `_no_end` left no end without a place
    new, rows, undone = operate(new, survey, places, skip_gain)
    with Operations(new, _maps(inputs)) as after:
        outputs = _run(new, inputs)
    _check_operations(type(model).__name__, before, after)
    undone += _unused_biases(new, after)
    if not all(out.isfinite().all() for out in tensors_in(outputs)):
        raise WorkbenchError(
            f"The normalizer-free {type(model).__name__} gives infinite or undefined outputs. Check the weights of the "
            "network and the input `x`."
        )
    with torch.no_grad():
        for buffer, before in buffers.items():
            buffer.copy_(before)
    for module in new.modules():
        module.training = modes.get(module, model.training)
    ends = [[end.path, name, end.scale, end.variance] for name, end in zip(places, survey.ends, strict=True)]
    return NormFree(
        new,
        pd.DataFrame(rows, columns=Row._fields),
        pd.DataFrame(ends, columns=["path", "gain", "scale", "variance"]),
        [*dict.fromkeys(why for why in no_ends.values() if why), *undone],
    )


def _check(model: nn.Module, alpha: float, blocks: Collection[str] | None) -> None:
    name = type(model).__name__
    if not alpha > 0:
        raise WorkbenchError(f"`alpha` must be above 0, got {alpha}. It sets how much a residual branch adds.")
    if any(isinstance(m, LazyModuleMixin) and cast(Any, m).has_uninitialized_params() for m in model.modules()):
        raise WorkbenchError(f"{name} has lazy modules, whose shapes are unknown. Run the network once on an input.")
    if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        raise WorkbenchError(
            f"{name} is compiled by TorchScript, so no module can be replaced. Pass the original network."
        )
    if not any(isinstance(m, _BatchNorm) for m in model.modules()):
        raise WorkbenchError(f"{name} has no BatchNorm module. Use the network as it is.")
    paths = {path for path, _ in model.named_modules()}
    for block in blocks or ():
        if block not in paths:
            raise unknown("module", block, paths - {""})


def example_input(model: nn.Module, image_size: int = 64, in_channels: int | None = None) -> Tensor:
    """Make images that a network takes, for runs in which only shapes matter.

    Args:
        model: A network with a convolution.
        image_size: Elements along each of the convolution's dimensions.
        in_channels: Channels of the images. None means those of the first convolution.

    Returns:
        (2, C, image_size, ...), draws from N(0, 1) that are always the same. They have the precision and the device of
        the first convolution's weight.

    Raises:
        WorkbenchError: If the network has no convolution.
    """
    weights = ((m, getattr(m, "weight", None)) for m in model.modules())
    conv, weight = next(((m, w) for m, w in weights if isinstance(w, Tensor) and w.ndim > 2), (None, None))
    if weight is None:
        raise WorkbenchError(_NO_CONVOLUTION.format(type(model).__name__))
    channels = in_channels or weight.shape[1] * getattr(conv, "groups", 1)
    shape = (2, channels, *[image_size] * (weight.ndim - 2))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(weight)


def _call(model: nn.Module, inputs: tuple):
    """Call the model on copies, as it may write into its inputs. Restore the random state."""
    inputs = tree_map(lambda a: a.detach().clone() if isinstance(a, Tensor) else a, inputs)
    devices = {t.device for t in tensors_in(inputs) if t.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
        return model(*inputs)


def _run(model: nn.Module, inputs: tuple):
    try:
        return _call(model, inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors_in(inputs))
        raise WorkbenchError(
            f"{type(model).__name__} does not run on an input of shape {shapes} "
            f"({description(error)}){place_of(error)}. "
            "Pass an input that fits, or a tuple of all arguments: normfree(model, x)."
        ) from error


def _survey(model: nn.Module, inputs: tuple, **how) -> Survey:
    with Surveyor(model, _maps(inputs), **how) as surveyor:
        _call(model, inputs)
    return surveyor.survey


def _maps(inputs: tuple) -> list[Tensor]:
    return [t for t in tensors_in(inputs) if t.is_floating_point()]


def _no_end(end: End, survey: Survey, modules: Mapping[str, nn.Module]) -> str | None:
    """Return None for a block end, else the reason against it. "" is not reported."""
    if end.last and not end.last & survey.followed:
        return ""  # the addition makes the network's output
    if place(end, survey, modules) is None:
        return (
            f"An addition in '{end.path}' looks like the end of a block but gets no gain, because no module returns "
            "its branch. If it is a block end, let nn.Identity() return the branch."
        )
    return None


def _check_operations(name: str, before: Operations, after: Operations) -> None:
    changed = difference(before.ran, after.ran)
    if changed:
        raise WorkbenchError(
            f"{name} without BatchNorm would be another function: on the same input, it {changed}. Call each norm as "
            "an attribute of its module, and let no code depend on the norm's class."
        )


def _unused_biases(model: nn.Module, operations: Operations) -> list[str]:
    """Return sentences about convolutions of unknown classes that do not read the bias that they got."""
    unused = [
        name
        for name, m in model.named_modules()
        if isinstance(m, StandardizedCall)
        and id(m.weight) in operations.read
        and id(m.conv.bias) not in operations.read
    ]
    return [f"'{name}' has no bias, because its class does not use the attribute `bias`." for name in unused]


def _check_survey(model: nn.Module, survey: Survey, variances: Mapping[str, float]) -> None:
    if survey.functional:
        name = survey.functional[0] or type(model).__name__
        raise WorkbenchError(
            f"'{name}' normalises by the batch in code, without a module that can be removed. "
            "Make the norm an attribute of the network, such as nn.BatchNorm2d."
        )
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and survey.calls[name]:
            check_norm(name, module, normalises=name in survey.norms)
    if not survey.scales:
        raise WorkbenchError(_NO_CONVOLUTION.format(type(model).__name__))
    paths = {end.path for end in survey.ends}
    for path, variance in variances.items():
        if path not in paths | {""}:  # signal_propagation calls the stem ""
            raise unknown("residual block", path, paths)
        if path in paths and not variance > 0:
            raise WorkbenchError(
                f"The variance after '{path}' must be above 0, got {variance}. Measure it with signal_propagation."
            )
