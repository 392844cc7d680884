"""Where things went wrong in a network's forward pass: the line of the user's code, and the operation that made the
first number that is not finite."""

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

NOT_THEIRS = tuple(str(Path(package.__file__).parent) for package in (torch, workbench))
NAMES = {"_to_copy": "conversion to another precision", "_softmax": "softmax", "_log_softmax": "log_softmax"}


class Origin(NamedTuple):
    """The operation that made the first number that is not finite, in words, and the modules that were running."""

    text: str
    modules: list[str]


def their_line(frames: Iterable[FrameSummary]) -> str:
    """The innermost line that is neither torch's nor ours: "line 12 of net.py, `h = self.conv(h)`", or ""."""
    for frame in reversed(list(frames)):
        if not frame.filename.startswith((*NOT_THEIRS, "<")):
            return f"line {frame.lineno} of {Path(frame.filename).name}" + (f", `{frame.line}`" if frame.line else "")
    return ""


def first_not_finite(model: nn.Module, inputs: list[Tensor]) -> Origin | None:
    """Runs `model` once more and looks at every operation. Masks of -inf, which are meant, are passed over."""
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
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, (Tensor, float))]
        known = [_range(t) for t in given if isinstance(t, Tensor)]
        finite = known and all(_is_finite(t) for t in given)
        out = func(*args, **kwargs)
        if finite and not all(_is_finite(t) for t in tree_leaves(out)):
            self.origin = Origin(self._described(name, known), list(self.stack))
        return out

    def _described(self, name: str, known: list[str]) -> str:
        line = their_line(extract_stack()[self.depth :])
        module = f" in {self.stack[-1]}" if self.stack and self.stack[-1] else ""
        where = f" ({line})" if line else ""
        return f"{NAMES.get(name, name.strip('_'))} of values from {' and from '.join(known[:2])}{module}{where}"


def _is_finite(x: object) -> bool:
    if isinstance(x, Tensor):
        return x.numel() == 0 or not x.is_floating_point() or bool(x.isfinite().all())
    return not isinstance(x, float) or x - x == 0


def _range(x: Tensor) -> str:
    return f"{x.min().item():.3g} to {x.max().item():.3g}" if x.numel() and not x.is_complex() else "none to none"
