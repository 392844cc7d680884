"""Block ends that lose one of their operands: a branch, or a shortcut, through which no gradient passes.

A detached operand has left the graph of gradients. One that is multiplied by zero is still in it, but nothing learns
through it. A branch that starts at zero by a parameter (SkipInit, FixUp, ReZero) differs in that the parameter gets a
gradient, from which the branch opens.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge


def is_connected(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> bool:
    """Whether a gradient gets from any of the outputs to any of the inputs; True where either has none."""
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
    """What is cut off, by the row of the block: `by_row[row]` is "branch", "shortcut" or "trunk"."""

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
        """Notes an addition that is about to run, of shortcut + gate * branch in the module `path`.

        Shortcuts of zeros without a gradient are sums that start at zero, and no fault.
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
        if x.requires_grad:  # the edge, for what comes next may write into x
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
            self.zeros.append((row, name, path, get_gradient_edge(x), noise))

    def settle(self) -> None:
        """Asks the graph, while it is there, whether any parameter learns through the operands that are zero."""
        for row, name, path, edge, noise in self.zeros:
            if not self._learns(path, edge, noise):
                self.by_row.setdefault(row, name)
        self.zeros.clear()

    def _learns(self, path: str, edge: GradientEdge, noise: Tensor) -> bool:
        """First of the parameters of the module that adds, which is cheap and nearly always the answer; then of all."""
        for module in (self.model.get_submodule(path), self.model):
            params = [p for p in module.parameters() if p.requires_grad]
            grads = torch.autograd.grad([edge], params, [noise], retain_graph=True, allow_unused=True) if params else []
            if any(g is not None and g.any() for g in grads):
                return True
        return not params  # a frozen network is not asked to learn
