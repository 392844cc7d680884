"""A scope in which a network standardises its weights once, however often it is called.

For evaluation, and for the micro-batches of one step:

    with standardized_once(model):
        for x, y in micro_batches:
            loss(model(x), y).backward()
    optimizer.step()

Outside of it nothing is kept, and the forward pass looks for nothing. Inside, the weights must not change; whatever
would change them, or carry them off, is refused.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from workbench.errors import WorkbenchError

MARK = "in_scope_of"  # on parameters: what AGC, EMA and SAM look for, which know nothing of networks


class _Fixed:
    """What a module has for its own while a scope is open: it cannot be carried off."""

    def __deepcopy__(self, memo):
        raise _refusal("be copied")

    def __reduce__(self):
        raise _refusal("be copied or saved")


class _Once(_Fixed):
    """Stands in a convolution for `standardized_weight`."""

    def __init__(self, weight: Tensor):
        self.weight = weight

    def __call__(self) -> Tensor:
        return self.weight


class _NoMode(_Fixed):
    """Stands in a module for `train`."""

    def __call__(self, mode: bool = True) -> None:
        raise _refusal("change its mode")


class _NoLoading(_Fixed):
    """Is called before weights are loaded."""

    def __call__(self, *_) -> None:
        raise _refusal("load weights")


@contextlib.contextmanager
def standardized_once(model: nn.Module) -> Iterator[nn.Module]:
    """Within it every convolution of `model` is standardised once; gradients go through that once, at its end.

    With gradients enabled, `backward` of the micro-batches adds up the gradients of the standardised weights, and the
    end of the scope takes them on to the parameters: the same gradient, to rounding. Scopes do not nest.
    Raises: WorkbenchError inside for train(), eval(), load_state_dict, copying, and steps of optimizer, AGC, EMA, SAM;
    at its end where a weight was written to; and in a backward pass that comes after it.
    """
    convs = [m for m in model.modules() if hasattr(m, "standardized_weight")]
    if any("standardized_weight" in vars(conv) for conv in convs):
        raise WorkbenchError("this network is in a scope of standardized_once already: use that one.")
    weights = [conv.standardized_weight() for conv in convs]
    shared = [w.detach().requires_grad_(w.requires_grad) for w in weights]
    params = [p for conv in convs for p in conv.parameters()]
    mine, versions, closed = {id(p) for p in params}, [p._version for p in params], []
    for weight in shared:
        if weight.requires_grad:
            weight.register_hook(lambda grad: _refuse_late(closed))

    def refuse_step(optimizer: torch.optim.Optimizer, *_) -> None:
        if any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
            raise _refusal("be stepped by an optimizer")

    hooks = [register_optimizer_step_pre_hook(refuse_step)]
    modules = dict.fromkeys([model, *convs])
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
            "a weight was written to inside a scope of standardized_once, which went on with the old one: "
            "write outside of it."
        )
    used = [(w, s.grad) for w, s in zip(weights, shared, strict=True) if s.grad is not None]
    if used:
        torch.autograd.backward(*map(list, zip(*used, strict=True)))


def _refuse_late(closed: list) -> None:
    if closed:
        raise WorkbenchError(
            "backward was called after the scope of standardized_once that the forward pass ran in, so the gradient "
            "would not reach the weights: call it inside."
        )


def _refusal(what: str) -> WorkbenchError:
    return WorkbenchError(
        f"a network in a scope of standardized_once cannot {what}: its weights are fixed there; close the scope first."
    )
