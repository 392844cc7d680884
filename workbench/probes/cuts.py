"""Find branches and shortcuts through which no gradient passes.

A detached operand has left the graph of gradients. An operand that is multiplied by zero is still in the graph, but
nothing learns through it. A branch that starts at zero by a parameter (SkipInit, FixUp, ReZero) is sound: the parameter
gets a gradient, which opens the branch.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge


def is_connected(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> bool:
    """Return whether a gradient gets from any output to any input.

    The answer is True if there are no outputs, or no input is part of a graph of gradients.
    """
    goals = {t.grad_fn for t in inputs if t.grad_fn is not None}
    todo, seen = [t.grad_fn for t in outputs if t.grad_fn is not None], set()
    while todo:
        node = todo.pop()
        if node in goals:
            return True
        if node not in seen:
            seen.add(node)
            todo.extend(other for other, _ in node.next_functions if other is not None)
    return not goals or not outputs


class Cuts:
    """Record of what is cut off in each block.

    Args:
        model: The network.

    Attributes:
        by_row: By row of the block "branch", "shortcut" or "trunk". Other blocks are missing.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.by_row: dict[int, str] = {}
        self.zeros: list[tuple[int, str, str, GradientEdge, Tensor]] = []

    def look(
        self,
        row: int,
        path: str,
        shortcut: Tensor,
        branch: Tensor,
        gate: Tensor | None = None,
        *,
        lost: Callable[[Tensor], bool],
    ) -> None:
        """Examine the operands of an addition, shortcut + gate * branch, before it runs.

        A shortcut of zeros without a gradient is a sum that starts at zero, which is no fault.

        Args:
            row: Row of the block.
            path: Name of the module that adds.
            shortcut: The shortcut.
            branch: The branch.
            gate: Factor of the branch. None: 1.
            lost: Returns whether a tensor was detached, or made without gradients.
        """
        if lost(branch) or (gate is not None and not gate.requires_grad and not gate.any()):
            self.by_row.setdefault(row, "branch")
        elif not branch.any():
            self._ask_later(row, "branch", path, branch)
        if not shortcut.any():
            self._ask_later(row, "shortcut", path, shortcut)
        elif lost(shortcut):
            self.by_row.setdefault(row, "shortcut")

    def _ask_later(self, row: int, name: str, path: str, x: Tensor) -> None:
        if x.requires_grad:  # keep the edge and not x itself, because later operations may write into x
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
            self.zeros.append((row, name, path, get_gradient_edge(x), noise))

    def settle(self) -> None:
        """Decide whether any parameter learns through the operands that are zero.

        Call it while the graph of gradients exists.
        """
        for row, name, path, edge, noise in self.zeros:
            if not self._learns(path, edge, noise):
                self.by_row.setdefault(row, name)
        self.zeros.clear()

    def _learns(self, path: str, edge: GradientEdge, noise: Tensor) -> bool:
        """Return whether any parameter gets a gradient through this edge.

        The module that adds comes first, because that is cheap and usually enough.
        """
        for module in (self.model.get_submodule(path), self.model):
            params = [p for p in module.parameters() if p.requires_grad]
            grads = torch.autograd.grad([edge], params, [noise], retain_graph=True, allow_unused=True) if params else []
            if any(g is not None and g.any() for g in grads):
                return True
        return not params  # a frozen network need not learn
