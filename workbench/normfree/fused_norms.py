"""BatchNorm classes that do more than BatchNorm, such as norm and activation in one module.

The norm goes and the rest stays: modules inside it where they are all of the rest, or else the code of the class with
its batch norm taken out.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from workbench.errors import WorkbenchError

FUNCTIONS = {F.batch_norm, torch.batch_norm}
PLAIN = {_BatchNorm.forward, nn.SyncBatchNorm.forward}


def is_plain(norm: _BatchNorm) -> bool:
    """Return whether a call of this module does nothing but normalise."""
    hooks = norm._forward_hooks or norm._forward_pre_hooks
    return type(norm).forward in PLAIN and type(norm).__call__ is nn.Module.__call__ and not hooks


def check_norm(name: str, norm: _BatchNorm, normalises: bool) -> None:
    """Check that a norm can be removed without a change of the function around it.

    Args:
        name: The name of the module.
        norm: The norm, which ran.
        normalises: Whether it ran torch's batch norm.

    Raises:
        WorkbenchError: If the norm computes its statistics by itself, is a subclass of SyncBatchNorm that does more, or
            has a weight or bias that is no parameter.
    """
    kind = type(norm).__name__
    for part in ("weight", "bias") if norm.affine else ():
        if part not in norm._parameters:
            raise WorkbenchError(
                f"The {part} of '{name}' ({kind}) is computed, but only a parameter can move into a convolution. Call "
                f"torch.nn.utils.parametrize.remove_parametrizations(module, '{part}') first."
            )
    if "forward" in vars(norm):
        raise WorkbenchError(f"The method forward of '{name}' ({kind}) was replaced. Write a class with that method.")
    if not normalises:
        raise WorkbenchError(
            f"'{name}' ({kind}) normalises in its own code. Use nn.BatchNorm2d, with whatever else the class does "
            "in a module behind it."
        )
    if isinstance(norm, nn.SyncBatchNorm) and not is_plain(norm):
        raise WorkbenchError(
            f"'{name}' ({kind}) is a SyncBatchNorm that does more than normalise. Use nn.BatchNorm2d, as the result "
            "has no statistics to synchronise."
        )


class _NoNorm(TorchFunctionMode):
    """A context in which batch norm returns its input, times a factor if there is one."""

    def __init__(self, factor: float | None):
        super().__init__()
        self.factor = factor

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None):
        if func not in FUNCTIONS:
            return func(*args, **(kwargs or {}))
        x = args[0] if args else (kwargs or {})["input"]
        return x if self.factor is None else x * self.factor


class WithoutNorm(nn.Module):
    """What a BatchNorm class does besides normalising.

    It has the attributes of the norm and runs the code of its class. Weight, bias and statistics are constants that
    change nothing, in case that code reads them.

    Args:
        norm: The norm, whose state moves here.
        factor: Factor instead of the norm. None: no factor.
    """

    def __init__(self, norm: _BatchNorm, factor: float | None = None):
        super().__init__()
        vars(self).update(vars(norm))
        self.norm_class, self.factor = type(norm), factor
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            value = getattr(norm, name)
            if value is not None:
                delattr(self, name)
                fill = torch.ones_like if name in ("weight", "running_var") else torch.zeros_like
                self.register_buffer(name, fill(value.detach()), persistent=False)

    def forward(self, *args, **kwargs) -> Any:
        """Run the code of the class. The shapes are those of the class."""
        norm = object.__new__(self.norm_class)
        norm.__dict__ = self.__dict__
        with _NoNorm(self.factor):
            return self.norm_class.forward(norm, *args, **kwargs)

    def extra_repr(self) -> str:
        """Show the class whose code runs."""
        return self.norm_class.__name__


def only_module(norm: _BatchNorm, call: tuple | None) -> nn.Module | None:
    """Return the module inside a norm, if the norm does nothing else than to normalise and to call it.

    Args:
        norm: A norm that is not plain. Its state moves elsewhere, so it cannot be used again.
        call: Arguments and named arguments of a call. None: it never ran.

    Returns:
        The module; an Identity if nothing remains. None if the norm does anything else.
    """
    inside = [m for m in norm.children() if type(m) is not nn.Identity] or [nn.Identity()]
    if call is None or len(call[0]) != 1 or call[1] or len(inside) > 1 or not isinstance(call[0][0], Tensor):
        return None
    x = torch.randn(call[0][0].shape, generator=torch.Generator().manual_seed(0)).to(call[0][0])
    without = WithoutNorm(norm)
    return inside[0] if all(_equal(without, inside[0], x, training) for training in (True, False)) else None


@torch.no_grad()
def _equal(a: nn.Module, b: nn.Module, x: Tensor, training: bool) -> bool:
    outputs = []
    for module in (a, b):
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed(0)
            outputs.append(module.train(training)(x.clone()))
    return torch.equal(*outputs)
