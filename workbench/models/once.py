"""A scope in which a network standardises its weights once, for any number of calls.

For evaluation, and for the micro-batches of one step:

    with standardized_once(model):
        for x, y in micro_batches:
            loss(model(x), y).backward()
    optimizer.step()

Outside the scope nothing is cached, and the forward pass does not look for a cache. Inside it the weights must not
change. Everything that would change or copy them is refused.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from workbench.errors import WorkbenchError

MARK = "in_scope_of"  # attribute of parameters that AGC, EMA and SAM check, because they do not see the network


class _Fixed:
    """Base of the attributes that modules get in a scope. They cannot be copied or saved."""

    def __deepcopy__(self, memo):
        raise _refusal("be copied")

    def __reduce__(self):
        raise _refusal("be copied or saved")


class _Once(_Fixed):
    """Replaces the method `standardized_weight` of a convolution."""

    def __init__(self, weight: Tensor):
        self.weight = weight

    def __call__(self) -> Tensor:
        return self.weight


class _NoMode(_Fixed):
    """Replaces the method `train` of a module."""

    def __call__(self, mode: bool = True) -> None:
        raise _refusal("change its mode")


class _NoLoading(_Fixed):
    """Hook that runs before weights are loaded."""

    def __call__(self, *_) -> None:
        raise _refusal("load weights")


@contextlib.contextmanager
def standardized_once(model: nn.Module) -> Iterator[nn.Module]:
    """Standardise every convolution of `model` once for the whole scope.

    With gradients enabled, each `backward` adds to the gradients of the standardised weights. The end of the scope
    passes these sums on to the parameters, once. The result is the same gradient, up to rounding. Scopes do not nest.

    Args:
        model: The network. It is changed in place and restored at the end.

    Yields:
        The same `model`.

    Raises:
        WorkbenchError: Inside, for train(), eval(), load_state_dict(), copying, saving, and steps of an optimizer, AGC,
            EMA or SAM. At the end, if a weight was written to. Later, for a backward pass of a forward pass inside.
    """
    convs: list[Any] = [m for m in model.modules() if hasattr(m, "standardized_weight")]
    if any("standardized_weight" in vars(conv) for conv in convs):
        raise WorkbenchError(
            f"This {type(model).__name__} is already in a scope of standardized_once. "
            "Scopes do not nest: use the open one."
        )
    weights = [conv.standardized_weight() for conv in convs]
    shared = [w.detach().requires_grad_(w.requires_grad) for w in weights]
    params = [p for conv in convs for p in conv.parameters()]
    scope_ids, versions, closed = {id(p) for p in params}, [p._version for p in params], []
    for weight in shared:
        if weight.requires_grad:
            weight.register_hook(lambda grad: _refuse_late(closed))

    def refuse_step(optimizer: torch.optim.Optimizer, *_) -> None:
        if any(id(p) in scope_ids for group in optimizer.param_groups for p in group["params"]):
            raise _refusal("be stepped by an optimizer")

    hooks = [register_optimizer_step_pre_hook(refuse_step)]
    modules: dict[Any, None] = dict.fromkeys([model, *convs])
    try:
        for conv, weight in zip(convs, shared, strict=True):
            conv.standardized_weight = _Once(weight)
        for module in modules:
            module.train = _NoMode()
            hooks.append(module.register_load_state_dict_pre_hook(_NoLoading()))
        for p in params:
            setattr(p, MARK, "standardized_once")
        yield model
    finally:
        closed.append(True)
        for hook in hooks:
            hook.remove()
        for module in modules:
            vars(module).pop("train", None)
        for conv in convs:
            vars(conv).pop("standardized_weight", None)
        for p in params:
            vars(p).pop(MARK, None)
    if versions != [p._version for p in params]:
        raise WorkbenchError(
            "A weight changed inside a scope of standardized_once, which kept using its old value. "
            "Change weights outside the scope."
        )
    used = [(w, s.grad) for w, s in zip(weights, shared, strict=True) if s.grad is not None]
    if used:
        with_grad, grads = zip(*used, strict=True)
        torch.autograd.backward(with_grad, grads)


def _refuse_late(closed: list) -> None:
    if closed:
        raise WorkbenchError(
            "`backward` was called after the forward pass's scope of standardized_once had ended, so the gradient "
            "would not reach the weights. Call `backward` inside the scope."
        )


def _refusal(what: str) -> WorkbenchError:
    return WorkbenchError(
        f"A network cannot {what} inside a scope of standardized_once, which fixes its weights. Close the scope first."
    )
