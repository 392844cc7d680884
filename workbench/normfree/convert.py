"""BatchNorm out of anybody's network: its normalizer-free version.

Source: NFNet paper, section 2. Every block becomes h + alpha * skip_gain * f(h / beta), every convolution scaled
weight-standardised. The network's code is not read: leaf modules are replaced (surgery.py), and gamma, beta and alpha
are constants in them, found by running it (survey.py).
"""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._pytree import tree_map

from workbench.errors import WorkbenchError, unknown
from workbench.normfree.shadows import tensors_in
from workbench.normfree.surgery import Row, operate, place
from workbench.normfree.survey import End, Survey, Surveyor


@dataclass
class NormFree:
    """What `normfree` returns.

    `model` the new network; `report` one row a module that was touched or left: path, was, became, scale, note;
    `blocks` one row a residual block: path, gain (the module that ends its branch), scale, and variance, the expected
    one of the trunk after it, at skip gain 1; `undone` what could not be done, in sentences.
    """

    model: nn.Module
    report: pd.DataFrame
    blocks: pd.DataFrame
    undone: list[str]

    def __str__(self) -> str:
        touched = self.report["was"] != self.report["became"]
        made = ", ".join(f"{n} {name}" for name, n in self.report[touched]["became"].value_counts().items())
        lines = [f"{type(self.model).__name__} without BatchNorm, {len(self.blocks)} residual blocks: {made}."]
        for (was, note), rows in self.report[~touched].groupby(["was", "note"], sort=False):
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
    """The normalizer-free version of `model`, as a copy; `model` is left as found.

    Args: `x` an input, or a tuple of all arguments, to run the copy on, in the mode it is in but without dropout; only
    shapes matter, and None stands for (2, channels of the first convolution, 64, 64). `alpha` and the start of the
    learnt skip gains are the paper's. `variances` {path of a block: variance of the trunk after it}, measured, in place
    of the expected ones: columns path and var of `signal_propagation`. `blocks` names the modules whose additions end
    residual blocks; None: all additions that look so.

    Weights are carried over, standardised; units of equal weights are drawn again. The weight and bias of a BatchNorm
    right after a convolution become its gain and bias, but for a weight of zeros, whose place the skip gain takes.
    Linear layers and other norms stay. What pools do to the variance is ignored, as the authors ignore it: white noise
    falls by average pools and grows by max-pools, images less. Constants are not in the state dict: load one into a
    network that was made in the same way.
    Raises: WorkbenchError for a network without BatchNorm or convolutions, one that does not run on `x`, lazy modules,
    unknown names, and code that normalises by the batch without a module.
    """
    _check(model, alpha, blocks)
    new = copy.deepcopy(model)
    modes = {module: module.training for module in new.modules()}
    buffers = {buffer: buffer.clone() for buffer in new.buffers()}
    for module in new.modules():
        if isinstance(module, _BatchNorm) or next(module.parameters(), None) is None:
            module.eval()  # dropout, stochastic depth
    x = example_input(new) if x is None else x
    inputs = x if isinstance(x, tuple) else (x,)
    _run(new, inputs)

    modules, wrong = dict(new.named_modules()), {}
    while True:  # an addition that is no block end after all changes what is expected behind it
        survey = _survey(new, inputs, alpha=alpha, variances=variances or {}, blocks=blocks, skip=wrong)
        more = {end.number: why for end in survey.ends if (why := _no_end(end, survey, modules)) is not None}
        if not more:
            break
        wrong |= more
    _check_survey(new, survey, variances or {})

    places = [place(end, survey, modules) for end in survey.ends]
    new, rows, undone = operate(new, survey, places, skip_gain)
    if not all(out.isfinite().all() for out in tensors_in(_run(new, inputs))):
        raise WorkbenchError(f"the normalizer-free {type(model).__name__} gives infinite or undefined outputs.")
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
        [*dict.fromkeys(why for why in wrong.values() if why), *undone],
    )


def _check(model: nn.Module, alpha: float, blocks: Collection[str] | None) -> None:
    name = type(model).__name__
    if not alpha > 0:
        raise WorkbenchError(f"`alpha` (={alpha}) must be above 0: it is how much a residual branch adds.")
    if any(isinstance(m, LazyModuleMixin) and m.has_uninitialized_params() for m in model.modules()):
        raise WorkbenchError(f"{name} has lazy modules, without shapes yet: run it once on an input, then convert it.")
    if not any(isinstance(m, _BatchNorm) for m in model.modules()):
        raise WorkbenchError(f"{name} has no BatchNorm module, so there is nothing to take out of it.")
    paths = {path for path, _ in model.named_modules()}
    for block in blocks or ():
        if block not in paths:
            raise unknown("module", block, paths - {""})


def example_input(model: nn.Module, image_size: int = 64, in_channels: int | None = None) -> Tensor:
    """Images that a network takes, for runs in which only shapes matter: N(0, 1), always the same.

    Args:
        image_size: Elements along each of the convolution's dimensions.
        in_channels: None stands for what the first convolution reads.

    Returns:
        (2, C, image_size, ...), of the precision and on the device of the first convolution's weight.

    Raises:
        WorkbenchError: If the network has no convolution.
    """
    weights = ((m, m.weight) for m in model.modules() if isinstance(getattr(m, "weight", None), Tensor))
    conv, weight = next(((m, w) for m, w in weights if w.ndim > 2), (None, None))
    if conv is None:
        raise WorkbenchError(f"{type(model).__name__} has no convolution whose weights could be standardised.")
    channels = in_channels or weight.shape[1] * getattr(conv, "groups", 1)
    shape = (2, channels, *[image_size] * (weight.ndim - 2))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(weight)


def _call(model: nn.Module, inputs: tuple):
    """model(*inputs), on copies, for it may write into them; the random state is left as it was."""
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
            f"{type(model).__name__} does not run on an input of shape {shapes} ({type(error).__name__}: {error}): "
            "give one that it takes, normfree(model, x), or a tuple of all its arguments."
        ) from error


def _survey(model: nn.Module, inputs: tuple, **how) -> Survey:
    with Surveyor(model, [t for t in tensors_in(inputs) if t.is_floating_point()], **how) as surveyor:
        _call(model, inputs)
    return surveyor.survey


def _no_end(end: End, survey: Survey, modules: Mapping[str, nn.Module]) -> str | None:
    """None for a block end; else why it is none, empty where the user need not know."""
    if end.last and not end.last & survey.followed:
        return ""  # what is added is the network's output
    if place(end, survey, modules) is None:
        return (
            f"an addition in '{end.path}' looks like the end of a block but gets no gain, for no module returns its "
            "branch: if it is one, let nn.Identity() return it."
        )
    return None


def _check_survey(model: nn.Module, survey: Survey, variances: Mapping[str, float]) -> None:
    if survey.functional:
        raise WorkbenchError(
            f"'{survey.functional[0]}' normalises by the batch in its own code, where no module can be taken out: "
            "write it with nn.BatchNorm2d, as an attribute of the network."
        )
    if not survey.scales:
        raise WorkbenchError(f"{type(model).__name__} has no convolution whose weights could be standardised.")
    paths = {end.path for end in survey.ends}
    for path, variance in variances.items():
        if path not in paths | {""}:  # signal_propagation calls the stem ""
            raise unknown("residual block", path, paths)
        if path in paths and not variance > 0:
            raise WorkbenchError(f"the variance after '{path}' (={variance}) must be above 0.")
