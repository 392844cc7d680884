"""Finds the layers of a network that adds no residual branches, by watching it run.

A layer is a convolution or a matrix product with weights, together with a norm right behind it. Its map is measured
before the next operation, usually an activation. Works on any module, whatever its code does.
"""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from workbench.models.additions import PRODUCTS, Additions

VIEWS = {"view", "_unsafe_view", "reshape"}  # they give a matrix product of tokens (N * T, C) its shape (N, T, C)


class Layers(Additions):
    """Calls back with the map and the module of each layer, inside `with Layers(...):`.

    The network's output is no layer. Behind a global pool come the head and gates, which are no layers either.

    Args:
        inputs: The inputs of the network.
        measure: Called with the map of a layer and the name of the module that runs its product.
        pooled: Include layers behind a global pool.
    """

    def __init__(self, inputs: Sequence[Tensor], measure: Callable[[Tensor, str], None], pooled: bool = False):
        super().__init__(inputs, lambda addition: None, lambda out: None)
        self.measure, self.with_pooled = measure, pooled
        self.unfinished = WeakIdKeyDictionary()  # {map of a layer: its module}
        self.pooled = WeakIdKeyDictionary()

    def run(self, func, args: tuple, kwargs: dict):
        """Run one operation. Measure a layer whose map it reads, unless the operation belongs to the layer."""
        known = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t in self.behind]
        name, layer = func.overloadpacket.__name__, None
        if known and known[0] in self.unfinished and _belongs(name, known):
            layer = self.unfinished.pop(known[0])
        for tensor in known:
            if tensor in self.unfinished:
                module = self.unfinished.pop(tensor)
                if self.with_pooled or tensor not in self.pooled:
                    self.measure(tensor, module)
        if func in PRODUCTS and len(known) == 1:  # the product of two maps is attention
            layer = self.stack[-1]
        out = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if known and outputs:
            if all(t in self.pooled for t in known) or (func not in PRODUCTS and _pools(known[0], outputs[0])):
                self.pooled.update({t: True for t in outputs})
            if layer is not None:
                self.unfinished[outputs[0]] = layer
        return out


def _belongs(name: str, known: list[Tensor]) -> bool:
    """Return whether an operation on a layer's map belongs to the layer: its norm, its bias, or its shape."""
    if len(known) > 1:
        return False
    return "norm" in name or name == "add" or (name in VIEWS and known[0].ndim == 2)


def _pools(x: Tensor, out: Tensor) -> bool:
    """Return whether several positions became one, without being moved into the channels."""
    before, after = x.shape[2:].numel(), out.shape[2:].numel()
    return x.ndim > 2 and before > 1 and after == 1 and out.numel() < x.numel()
