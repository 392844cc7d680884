"""Sharpness-aware minimisation: a step uphill on a fifth of the batch, then the gradient.

Sources: Foret et al. 2021. NFNet paper, section 4.1 and appendix: the ascent gradient is that of 20 % of the *same*
batch, and is not synchronised over devices. The paper does not say which gradient AGC clips. Here AGC clips the descent
gradient alone.

    sam = SAM(model.parameters(), rho=0.05)
    loss(model(x[: len(x) // 5]), ...).backward()      # under DDP inside model.no_sync()
    sam.ascend()                                       # w <- w + rho * g / |g|
    loss(model(x), ...).backward()
    sam.descend()                                      # restore w bit for bit, keep the gradient
    optimizer.step()
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.optim.scope import refuse_open
from workbench.optim.sharded import refuse_flattened

SHARE = 0.2  # share of the batch for the ascent


class SAM:
    """Move parameters uphill and back.

    |g| is the norm of the whole gradient, over all parameters.

    Args:
        params: Parameters of the network. Those that do not require a gradient are left out.
        rho: Length of the step uphill.

    Raises:
        WorkbenchError: If `rho` is not finite and positive, a parameter is listed twice, or the parameters are those of
            FullyShardedDataParallel.
    """

    def __init__(self, params: Iterable[Tensor], rho: float = 0.05):
        if not 0 < rho < math.inf:
            raise WorkbenchError(
                f"`rho` must be a finite number above 0, got {rho}. To train without SAM, leave it out."
            )
        self.params, self.rho = [p for p in params if p.requires_grad], rho
        if (twice := len(self.params) - len({id(p) for p in self.params})) > 0:
            raise WorkbenchError(
                f"`params` must hold each parameter once, but {twice} came again, which SAM would move twice. "
                "Use model.parameters(), which leaves out repetitions."
            )
        refuse_flattened(self.params, "SAM cannot climb with")
        self._before: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def ascend(self) -> None:
        """Set w <- w + rho * g / |g| and clear the gradients. A gradient of zero moves nothing.

        Raises:
            WorkbenchError: If the parameters are uphill already, or no parameter has a gradient.
        """
        if self._before:
            raise WorkbenchError("SAM is uphill already. Call descend() before the next ascend().")
        refuse_open(self.params, "SAM cannot climb")
        moved = [p for p in self.params if p.grad is not None]
        if not moved:
            raise WorkbenchError(
                "SAM has no gradient to climb. Call backward() on the loss of a part of the batch first."
            )
        self._before = [(p, p.detach().clone()) for p in moved]
        grads = (p.grad for p in moved if p.grad is not None)
        norms = torch.stack([torch.linalg.vector_norm(grad.float()).to(moved[0].device) for grad in grads])
        factor = self.rho / torch.linalg.vector_norm(norms).clamp_min(1e-12)
        for p in moved:
            assert p.grad is not None
            p.add_(p.grad * factor.to(device=p.device, dtype=p.dtype))
            p.grad = None

    @torch.no_grad()
    def descend(self) -> None:
        """Restore every parameter bit for bit. Gradients stay.

        Raises:
            WorkbenchError: If the parameters are not uphill.
        """
        if not self._before:
            raise WorkbenchError("SAM is not uphill. Call ascend() before descend().")
        refuse_open(self.params, "SAM cannot go back")
        for p, before in self._before:
            p.copy_(before)
        self._before = []


def sub_batch(n: int, share: float = SHARE) -> int:
    """Return how many of n samples the ascent uses, at least one."""
    return max(1, round(n * share))
