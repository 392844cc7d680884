"""A scope in which a forward pass keeps no outputs of activations, and backward makes them again from their inputs.

GELU and SiLU keep their input for backward, and the convolution behind them keeps their output; the second can be had
from the first for little. ReLU keeps its output only, so there is nothing to win.

    with recomputed_activations(model):
        loss = criterion(model(x), y)
    loss.backward()
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn


class _Recipe(NamedTuple):
    """How to make a saved tensor again."""

    activation: Callable[[Tensor], Tensor]
    x: Tensor

    def made(self) -> Tensor:
        with torch.no_grad():
            return self.activation(self.x)


@contextlib.contextmanager
def recomputed_activations(model: nn.Module) -> Iterator[nn.Module]:
    """Forward passes within it keep less: the same gradients, bit for bit, for one more activation each in backward.

    Works on the networks of this library, whose activation is their function `act`.
    """
    recipes: dict[int, tuple[_Recipe, torch.Size]] = {}
    modules = [m for m in model.modules() if callable(vars(m).get("act"))]
    activations = [m.act for m in modules]

    def watched(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def act(x: Tensor) -> Tensor:
            out = activation(x)
            if out.requires_grad and out is not x:
                place = out.data_ptr()
                recipes[place] = _Recipe(activation, x.detach()), out.shape
                weakref.finalize(out, recipes.pop, place, None)  # another tensor may come to lie there
            return out

        return act

    def pack(tensor: Tensor) -> Tensor | _Recipe:
        recipe, shape = recipes.get(tensor.data_ptr(), (tensor, None))
        return recipe if shape == tensor.shape else tensor

    def unpack(packed: Tensor | _Recipe) -> Tensor:
        return packed.made() if isinstance(packed, _Recipe) else packed

    try:
        for module, activation in zip(modules, activations, strict=True):
            module.act = watched(activation)
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield model
    finally:
        for module, activation in zip(modules, activations, strict=True):
            module.act = activation
