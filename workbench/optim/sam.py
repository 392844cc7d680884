"""Sharpness-aware minimisation as the paper uses it: a step uphill on a fifth of the batch, then the gradient there.

Source: Foret et al. 2021; NFNet paper, section 4.1 and appendix: the ascent gradient is that of 20 % of the *same*
batch, and is not synchronised over devices. AGC acts once, on the descent gradient (the natural reading; the paper does
not say).

    sam = SAM(model.parameters(), rho=0.05)
    loss(model(x[: len(x) // 5]), ...).backward()      # under DDP inside model.no_sync()
    sam.ascend()                                       # w <- w + rho * g / |g|
    loss(model(x), ...).backward()
    sam.descend()                                      # w back, bit for bit; the gradient stays
    optimizer.step()
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.optim.scope import refuse_open

SHARE = 0.2  # of the batch, for the ascent


class SAM:
    """Moves parameters uphill and back. |g| is the norm of the whole gradient, over all parameters."""

    def __init__(self, params: Iterable[Tensor], rho: float = 0.05):
        if not rho > 0:
            raise WorkbenchError(f"`rho` (={rho}) must be above 0; to do without, leave SAM out.")
        self.params, self.rho = [p for p in params if p.requires_grad], rho
        self._before: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def ascend(self) -> None:
        """w <- w + rho * g / |g|, and the gradients are cleared. A gradient of zero moves nothing."""
        if self._before:
            raise WorkbenchError("SAM is uphill already: call descend() before the next ascend().")
        refuse_open(self.params, "SAM cannot climb")
        moved = [p for p in self.params if p.grad is not None]
        if not moved:
            raise WorkbenchError(
                "SAM has no gradient to climb: call backward() on the loss of a part of the batch first."
            )
        self._before = [(p, p.detach().clone()) for p in moved]
        norms = torch.stack([torch.linalg.vector_norm(p.grad.float()).to(moved[0].device) for p in moved])
        factor = self.rho / torch.linalg.vector_norm(norms).clamp_min(1e-12)
        for p in moved:
            p.add_(p.grad * factor.to(device=p.device, dtype=p.dtype))
            p.grad = None

    @torch.no_grad()
    def descend(self) -> None:
        """Puts every parameter back where it was, bit for bit; gradients stay."""
        if not self._before:
            raise WorkbenchError("SAM is not uphill: call ascend() first.")
        refuse_open(self.params, "SAM cannot go back")
        for p, before in self._before:
            p.copy_(before)
        self._before = []


def sub_batch(n: int, share: float = SHARE) -> int:
    """How many of n samples the ascent uses: their share, at least one."""
    return max(1, round(n * share))
