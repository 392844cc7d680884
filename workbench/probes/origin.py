"""Find where a forward pass failed.

That is the line of the user's code, or the first operation whose result is not finite.
"""

import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from traceback import FrameSummary, extract_stack
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import workbench
from workbench.models.additions import watch_modules

LIBRARY_FOLDERS = tuple(str(Path(inspect.getfile(package)).parent) for package in (torch, workbench))
NAMES = {"_to_copy": "conversion to another precision", "_softmax": "softmax", "_log_softmax": "log_softmax"}


class Origin(NamedTuple):
    """Operation that made the first number that is not finite.

    Attributes:
        text: Description of the operation.
        modules: Names of the modules that were running, the innermost last.
    """

    text: str
    modules: list[str]


def user_line(frames: Iterable[FrameSummary]) -> str:
    """Describe the innermost line outside of torch and this library.

    Args:
        frames: Frames of a stack or traceback, the innermost last.

    Returns:
        Text such as "line 12 of net.py, `h = self.conv(h)`"; empty if all frames are in the libraries.
    """
    for frame in reversed(list(frames)):
        if not frame.filename.startswith((*LIBRARY_FOLDERS, "<")):
            return f"line {frame.lineno} of {Path(frame.filename).name}" + (f", `{frame.line}`" if frame.line else "")
    return ""


def first_not_finite(model: nn.Module, inputs: list[Tensor]) -> Origin | None:
    """Run a model again and find the operation that makes the first number that is not finite.

    Masks of -inf are intended, so they do not count.

    Args:
        model: The model.
        inputs: Inputs for model(*inputs).

    Returns:
        The operation; None if all numbers are finite.
    """
    watch = _Watch()
    hooks = watch_modules(model, watch.stack)
    try:
        with torch.no_grad(), watch:
            model(*[t.detach().clone() for t in inputs])
    finally:
        for hook in hooks:
            hook.remove()
    return watch.origin


class _Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.stack: list[str] = []
        self.origin: Origin | None = None
        self.depth = len(extract_stack(sys._getframe(1)))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if self.origin is not None or "empty" in name:
            return func(*args, **kwargs)
        operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, (Tensor, float))]
        ranges = [_range(t) for t in operands if isinstance(t, Tensor)]
        finite = ranges and all(_is_finite(t) for t in operands)
        out = func(*args, **kwargs)
        if finite and not all(_is_finite(t) for t in tree_leaves(out)):
            self.origin = Origin(self._described(name, ranges), list(self.stack))
        return out

    def _described(self, name: str, ranges: list[str]) -> str:
        line = user_line(extract_stack()[self.depth :])
        module = f" in {self.stack[-1]}" if self.stack and self.stack[-1] else ""
        where = f" ({line})" if line else ""
        return f"{NAMES.get(name, name.strip('_'))} of values from {' and from '.join(ranges[:2])}{module}{where}"


def _is_finite(x: object) -> bool:
    if isinstance(x, Tensor):
        return x.numel() == 0 or not x.is_floating_point() or bool(x.isfinite().all())
    return not isinstance(x, float) or x - x == 0


def _range(x: Tensor) -> str:
    return f"{x.min().item():.3g} to {x.max().item():.3g}" if x.numel() and not x.is_complex() else "none to none"
