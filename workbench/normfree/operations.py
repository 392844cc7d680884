"""Records which operations run on maps, to compare a network with its copy without BatchNorm.

A copy that lost an activation still runs and trains, but is another function. Only norms may differ. Factors, sums and
changes of the layout are not recorded, because they also come and go with a norm.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from workbench.models.additions import PRODUCTS, Additions, watch_modules
from workbench.normfree.shadows import POOLS, tensors_in

NEUTRAL = {"add", "sub", "rsub", "neg", "clone", "_to_copy", "copy"}  # pointwise operations that are linear
FACTORS = {"mul", "div"}  # linear unless both operands come from the input
OTHERS = {  # no pointwise operations to torch, or without its tag
    *("hardswish", "_prelu_kernel", "rrelu_with_noise", "log_sigmoid_forward"),
    *("glu", "_softmax", "_log_softmax"),
}

Ran = tuple[str, str]  # name of an operation, name of the module whose code runs it


class Operations(Additions):
    """A context that records the operations on maps that come from the inputs.

    Batch norm is left out where a BatchNorm module runs it.

    Args:
        model: The network.
        inputs: Its inputs.

    Attributes:
        ran: The operations, in order. In-place operations have the names of the others.
        read: The ids of all tensors that any operation read.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]):
        super().__init__(inputs, lambda addition: None, lambda out: None)
        self.model = model
        self.norms = {name for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
        self.ran: list[Ran] = []
        self.read: set[int] = set()

    def __enter__(self):
        self.hooks = watch_modules(self.model, self.stack)
        return super().__enter__()

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()
        return super().__exit__(*error)

    def run(self, func, args: tuple, kwargs: dict):
        """Run one operation and record it."""
        tensors = tensors_in((args, kwargs))
        self.read.update(id(t) for t in tensors)
        known = sum(t in self.behind for t in tensors)
        name = func.overloadpacket.__name__.removesuffix("_")
        name = "batch_norm" if "batch_norm" in name else name
        wanted = known > 0 and (
            self.stack[-1] not in self.norms if name == "batch_norm" else _counts(func, name, known)
        )
        if wanted:
            self.ran.append((name, self.stack[-1]))
        return func(*args, **kwargs)


def _counts(func, name: str, known: int) -> bool:
    if func in PRODUCTS or name in OTHERS or POOLS.fullmatch(name):
        return True
    return torch.Tag.pointwise in func.tags and name not in NEUTRAL and not (name in FACTORS and known < 2)


def difference(before: Sequence[Ran], after: Sequence[Ran]) -> str:
    """Describe in words which operations differ, or return "".

    Args:
        before: The operations of the network.
        after: The operations of its copy.
    """
    names = [[name for name, _ in ran] for ran in (before, after)]
    lost, new = [], []
    for kind, a, b, c, d in SequenceMatcher(None, *names, autojunk=False).get_opcodes():
        if kind != "equal":
            lost += before[a:b]
            new += after[c:d]
    parts = [f"lacks {_listed(lost)}"] * bool(lost) + [f"also runs {_listed(new)}"] * bool(new)
    return " and ".join(parts)


def _listed(ran: Sequence[Ran]) -> str:
    shown = [f"{name} in '{module}'" if module else name for name, module in dict.fromkeys(ran)]
    return ", ".join(shown[:3]) + ", ..." * (len(shown) > 3)
