"""Where a network adds a residual branch to its trunk, found by watching additions as they run.

A block end is an addition of two different maps of one shape, both made from the input, one of them with a convolution
or a matrix product behind the last block end. That one is the branch (of two such, the one with more operations behind
it), the other the shortcut. Works on any module, whatever its code does.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten
ADDITIONS = {aten.add.Tensor, aten.add_.Tensor, aten.addcmul.default, aten.addcmul_.default}
DRAWN = {aten.randn_like.default, aten.rand_like.default}  # they have a map's shape, and nothing of it
PRODUCTS = {aten.convolution.default, aten.addmm.default, aten.mm.default, aten.bmm.default, aten.baddbmm.default}


class Behind(NamedTuple):
    """What lies behind a tensor since the last block end: products, and operations of any kind; and since the input,
    whether anything asked for a gradient."""

    products: int
    operations: int
    asked: bool = False


class Addition(NamedTuple):
    """An addition that is about to run: the module that does it, and its operands."""

    module: str
    shortcut: Tensor
    branch: Tensor
    gate: Tensor | None  # what the branch is multiplied by as it is added
    deeper: bool = True  # whether the branch has a product behind it that the shortcut has not


class Additions(TorchDispatchMode):
    """While it is entered, calls `before` with each block end that is about to run, and `after` with what came of it.

    Args: `inputs` those of the network, from which every map must come; `between` is called before every operation,
    when the results of those before it have their places in the graph of gradients; `least` the dimensions that a map
    has at least: 3, or 2 where the inputs are features (N, C).
    """

    def __init__(
        self,
        inputs: Sequence[Tensor],
        before: Callable[[Addition], None],
        after: Callable[[Tensor], None],
        between: Callable[[], None] = lambda: None,
        least: int = 3,
    ):
        super().__init__()
        self.before, self.after, self.between, self.least = before, after, between, least
        self.behind = WeakIdKeyDictionary({x: Behind(0, 0) for x in inputs})
        self.stack: list[str] = [""]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.between()
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        known = [self.behind[t] for t in inputs if t in self.behind]
        end = self._block_end(func, args) if func in ADDITIONS else None
        if end is not None:
            self.before(end)
        asked = any(t.requires_grad for t in inputs) or any(b.asked for b in known)
        out = self.run(func, args, kwargs or {})
        if end is not None:
            self.after(out)
            self.behind[out] = Behind(0, 0, asked)
        elif known and func not in DRAWN:
            products = max(b.products for b in known) + (func in PRODUCTS)
            behind = Behind(products, max(b.operations for b in known) + 1, asked)
            ends = any(not _is_whole(t) for t in inputs if t in self.behind)  # in whole numbers, as argmax gives
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor) and not (ends and _is_whole(tensor)):
                    self.behind[tensor] = behind
        return out

    def lost(self, x: Tensor) -> bool:
        """Whether a gradient that something before `x` asked for ends here: it was detached, or made without one."""
        return self.behind[x].asked and not x.requires_grad

    def run(self, func, args: tuple, kwargs: dict):
        """Runs one operation; a mode that watches more than additions does it here."""
        return func(*args, **kwargs)

    def _block_end(self, func, args: tuple) -> Addition | None:
        a, b, *rest = args
        if not isinstance(b, Tensor) or a.shape != b.shape or a.ndim < self.least or a is b:
            return None
        if a not in self.behind or b not in self.behind:
            return None
        behind_a, behind_b = self.behind[a], self.behind[b]
        if max(behind_a.products, behind_b.products) == 0:
            return None
        shortcut, branch = (a, b) if behind_b[:2] > behind_a[:2] else (b, a)
        gate = rest[0] if rest and isinstance(rest[0], Tensor) else None
        deeper = self.behind[branch].products > self.behind[shortcut].products
        return Addition(self.stack[-1], shortcut, branch, gate, deeper)


def _is_whole(x: Tensor) -> bool:
    return not (x.dtype.is_floating_point or x.dtype.is_complex)


def watch_modules(model: nn.Module, stack: list[str]) -> list:
    """Hooks that keep on `stack` the names of the modules that are running, the innermost last."""
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
        hooks.append(module.register_forward_hook(lambda *_: _pop(stack), always_call=True))
    return hooks


def _pop(stack: list[str]) -> None:
    stack.pop()
