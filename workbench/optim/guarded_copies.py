"""Copies of networks for averages and rehearsals, and what to do if a network cannot be copied."""

import copy
from functools import lru_cache
from typing import TypeVar

from torch import nn

from workbench.copies import copied
from workbench.errors import WorkbenchError

T = TypeVar("T")


def copy_of(value: T, memo: dict, if_sharded: str) -> T:
    """Copy a network, or a function that may be one.

    Args:
        value: The network or function. It stays unchanged.
        memo: The memo of `copy.deepcopy`. It gets the copies of all parts.
        if_sharded: What to do with a network of `fully_shard`, which torch cannot copy.

    Raises:
        WorkbenchError: If a network is sharded, or holds something that Python cannot copy.
    """
    if not isinstance(value, nn.Module):
        return copy.deepcopy(value, memo)
    if any(is_fully_sharded(module) for module in value.modules()):
        raise WorkbenchError(f"torch cannot copy a network after fully_shard. {if_sharded}")
    try:
        return copied(value, memo)
    except WorkbenchError:
        raise
    except Exception as error:  # a module may hold anything
        raise WorkbenchError(
            f"{type(value).__name__} cannot be copied: {str(error).partition(chr(10))[0]}. Keep what cannot be copied "
            "outside of its modules, or give the module that holds it a __deepcopy__."
        ) from error


def is_fully_sharded(module: nn.Module) -> bool:
    """Return whether `fully_shard` was applied to the module itself."""
    return _has_base(type(module), "FSDPModule")  # by name, as its import is slow


@lru_cache(maxsize=1024)
def _has_base(kind: type, name: str) -> bool:
    return any(base.__name__ == name for base in kind.__mro__)
