"""Finds where a network adds a residual branch to its trunk, by watching it run.

A block end is an addition of two different maps of one shape. Both must come from the input, and at least one must have
passed a convolution or a matrix product since the last block end. The operand with more products is the branch; at a
tie, the one with more operations. The other operand is the shortcut. Works on any module, whatever its code does.
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
DRAWN = {aten.randn_like.default, aten.rand_like.default}  # they take a map's shape, but none of its values
PRODUCTS = {aten.convolution.default, aten.addmm.default, aten.mm.default, aten.bmm.default, aten.baddbmm.default}


class Behind(NamedTuple):
    """What a tensor was computed by.

    Attributes:
        products: Convolutions and matrix products since the last block end.
        operations: Operations of any kind since the last block end.
        needs_grad: Whether any tensor since the input requires a gradient.
    """

    products: int
    operations: int
    needs_grad: bool = False


class Addition(NamedTuple):
    """A block end that is about to run.

    Attributes:
        module: Name of the module that adds.
        shortcut: The operand from the trunk.
        branch: The operand from the residual branch.
        gate: The factor of the branch in the same operation, if any.
        deeper: Whether the branch passed more products than the shortcut.
    """

    module: str
    shortcut: Tensor
    branch: Tensor
    gate: Tensor | None
    deeper: bool = True


class Additions(TorchDispatchMode):
    """Calls back at each block end, inside `with Additions(...):`.

    Args:
        inputs: Inputs of the network. Every map must come from them.
        before: Called with each block end before it runs.
        after: Called with the result of each block end.
        between: Called before every operation. At that time the earlier results are in the autograd graph.
        least: Smallest number of dimensions of a map: 3, or 2 if the inputs are features (N, C).
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
        needs_grad = any(t.requires_grad for t in inputs) or any(b.needs_grad for b in known)
        out = self.run(func, args, kwargs or {})
        if end is not None:
            self.after(out)
            self.behind[out] = Behind(0, 0, needs_grad)
        elif known and func not in DRAWN:
            products = max(b.products for b in known) + (func in PRODUCTS)
            behind = Behind(products, max(b.operations for b in known) + 1, needs_grad)
            had_fractions = any(not _is_whole(t) for t in inputs if t in self.behind)
            for tensor in tree_leaves(out):  # integers made from floats, such as those of argmax, are no maps
                if isinstance(tensor, Tensor) and not (had_fractions and _is_whole(tensor)):
                    self.behind[tensor] = behind
        return out

    def lost(self, x: Tensor) -> bool:
        """Whether `x` lost the gradient that a tensor before it requires, for example by `detach`."""
        return self.behind[x].needs_grad and not x.requires_grad

    def run(self, func, args: tuple, kwargs: dict):
        """Run one operation. Subclasses that watch more than additions override this."""
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
    """Keep the names of the running modules on `stack`, the innermost last.

    Returns:
        The hooks. Remove them when done.
    """
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
        hooks.append(module.register_forward_hook(lambda *_: _pop(stack), always_call=True))
    return hooks


def _pop(stack: list[str]) -> None:
    stack.pop()
