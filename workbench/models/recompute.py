"""A scope that saves memory: backward computes the outputs of activations again.

GELU and SiLU keep their input for backward, and the next convolution keeps their output. The output is cheap to compute
from the input. ReLU keeps only its output, so it saves nothing.

    with recomputed_activations(model):
        loss = criterion(model(x), y)
    loss.backward()
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class _Recipe(NamedTuple):
    """How to compute a saved tensor again."""

    activation: Callable[[Tensor], Tensor]
    x: Tensor

    def made(self) -> Tensor:
        with torch.no_grad():
            return self.activation(self.x)


@contextlib.contextmanager
def recomputed_activations(model: nn.Module) -> Iterator[nn.Module]:
    """Keep no outputs of activations in forward passes inside the scope.

    Gradients are the same, bit for bit. Backward computes each activation once more.

    Args:
        model: A network of this library, whose modules call their activation `act`.

    Yields:
        The same `model`.
    """
    recipes: dict[int, tuple[_Recipe, torch.Size]] = {}
    modules: list[Any] = [m for m in model.modules() if callable(vars(m).get("act"))]
    activations = [m.act for m in modules]

    def watched(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def act(x: Tensor) -> Tensor:
            out = activation(x)
            if out.requires_grad and out is not x:
                place = out.data_ptr()
                recipes[place] = _Recipe(activation, x.detach()), out.shape
                weakref.finalize(out, recipes.pop, place, None)  # another tensor may reuse the address
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
