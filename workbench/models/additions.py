"""Where a network adds a residual branch to its trunk, found by watching additions as they run.

A block end is an addition of two different maps of one shape, both made from the input, one of them with a convolution
or a matrix product behind the last block end. That one is the branch (of two such, the one with more operations behind
it), the other the shortcut. Works on any module, whatever its code does.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten
ADDITIONS = {aten.add.Tensor, aten.add_.Tensor, aten.addcmul.default, aten.addcmul_.default}
PRODUCTS = {aten.convolution.default, aten.addmm.default, aten.mm.default, aten.bmm.default, aten.baddbmm.default}


class Behind(NamedTuple):
    """What lies behind a tensor since the last block end: products, and operations of any kind."""

    products: int
    operations: int


class Addition(NamedTuple):
    """An addition that is about to run: the module that does it, and its operands."""

    module: str
    shortcut: Tensor
    branch: Tensor
    gate: Tensor | None  # what the branch is multiplied by as it is added


class Additions(TorchDispatchMode):
    """While it is entered, calls `before` with each block end that is about to run, and `after` with what came of it.

    Args: `x` the input of the network, from which every map must come; `between` is called before every operation, when
    the results of those before it have their places in the graph of gradients.
    """

    def __init__(
        self,
        x: Tensor,
        before: Callable[[Addition], None],
        after: Callable[[Tensor], None],
        between: Callable[[], None] = lambda: None,
    ):
        super().__init__()
        self.before, self.after, self.between = before, after, between
        self.behind = WeakIdKeyDictionary({x: Behind(0, 0)})
        self.stack: list[str] = [""]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.between()
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        known = [self.behind[t] for t in inputs if t in self.behind]
        end = self._block_end(func, args) if func in ADDITIONS else None
        if end is not None:
            self.before(end)
        out = self.run(func, args, kwargs or {})
        if end is not None:
            self.after(out)
            self.behind[out] = Behind(0, 0)
        elif known:
            behind = Behind(max(b.products for b in known) + (func in PRODUCTS), max(b.operations for b in known) + 1)
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor):
                    self.behind[tensor] = behind
        return out

    def run(self, func, args: tuple, kwargs: dict):
        """Runs one operation; a mode that watches more than additions does it here."""
        return func(*args, **kwargs)

    def _block_end(self, func, args: tuple) -> Addition | None:
        a, b, *rest = args
        if not isinstance(b, Tensor) or a.shape != b.shape or a.ndim < 3 or a is b:
            return None
        if a not in self.behind or b not in self.behind:
            return None
        behind_a, behind_b = self.behind[a], self.behind[b]
        if max(behind_a.products, behind_b.products) == 0:
            return None
        shortcut, branch = (a, b) if behind_b > behind_a else (b, a)
        gate = rest[0] if rest and isinstance(rest[0], Tensor) else None
        return Addition(self.stack[-1], shortcut, branch, gate)


def watch_modules(model: nn.Module, stack: list[str]) -> list:
    """Hooks that keep on `stack` the names of the modules that are running, the innermost last."""
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
        hooks.append(module.register_forward_hook(lambda *_: _pop(stack), always_call=True))
    return hooks


def _pop(stack: list[str]) -> None:
    stack.pop()
