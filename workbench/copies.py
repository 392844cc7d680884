"""Copies of networks, also of those that torch refuses to copy."""

import copy
from typing import TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Network = TypeVar("Network", bound=nn.Module)


def copied(model: Network, memo: dict | None = None) -> Network:
    """Copy a network with all that belongs to it.

    torch copies no tensor that was computed from parameters. Modules with `torch.nn.utils.weight_norm` or
    `spectral_norm` hold such tensors, and so do modules that keep activations. The copy gets their values without their
    graph. Hooks such as that of `weight_norm` compute them again in each forward pass.

    Args:
        model: The network, which stays unchanged.
        memo: The memo of `copy.deepcopy`, which receives what is copied. None: a new one.

    Returns:
        The copy.
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        for value in tree_leaves(vars(module)):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)
