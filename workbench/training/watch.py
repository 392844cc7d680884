"""The losses of the steps, which stay on the device and are read every few steps.

Reading waits for the device, so it must be rare.
"""

import torch
from torch import Tensor


class LossWatch:
    """The losses of the steps and the norms of their gradients.

    A step fails if its loss is not finite or above `limit`, or if the norm of a gradient is not finite.

    `failed` is 1 on the device from the failed step on. A fused optimizer that has `failed` as its `found_inf` then
    leaves the weights unchanged, even before the losses are read.

    Args:
        limit: The largest loss that is allowed.
        every: Steps between reads of the device.

    Attributes:
        step: The first step that failed, or 0.
        loss: Loss of that step.
        norms: Gradient norms (P,) of that step, one per parameter, or None.
        failed: () on the device, or None. It is kept only if `every` is above 1.
    """

    def __init__(self, limit: float, every: int):
        self.limit, self.every = limit, every
        self.step, self.loss = 0, 0.0
        self.norms: Tensor | None = None
        self.failed: Tensor | None = None
        self._unread: list[tuple[Tensor, Tensor]] = []
        self._since_last: list[float] = []

    def diverged(self, step: int, loss: Tensor, norms: Tensor, look: bool) -> bool:
        """Add a step before its update, and return whether a step is known to have failed.

        Args:
            step: The step, counted from 1.
            loss: () of the step.
            norms: (P,) of the gradients.
            look: Read the device now, and not only every few steps.
        """
        self._unread.append((loss, norms))
        if self.every > 1:
            fails = ((loss <= self.limit) & norms.isfinite().all()).logical_not().float()
            self.failed = fails if self.failed is None else torch.maximum(fails, self.failed.to(fails.device))
        if not look and step % self.every:
            return False
        losses, unread = zip(*self._unread, strict=True)
        values = torch.stack([loss.to(norms.device) for loss in losses])
        sound = torch.stack([norms.to(values.device) for norms in unread]).isfinite().all(1)
        values, sound = torch.stack([values, sound.to(values.dtype)]).tolist()
        for i, (value, finite) in enumerate(zip(values, sound, strict=True)):
            if not (value <= self.limit and finite):  # this is also true if the loss is NaN
                self.step, self.loss, self.norms = step - len(values) + 1 + i, value, unread[i]
                return True
        self._since_last += values
        self._unread.clear()
        return False

    def state_dict(self) -> dict:
        """Return the losses and norms that are still needed."""
        return {
            "unread": [(loss.cpu(), norms.cpu()) for loss, norms in self._unread],
            "failed": self.failed,
            "since_last": list(self._since_last),
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self._unread = [(loss, norms) for loss, norms in state["unread"]]
        self.failed = state["failed"]
        self._since_last = list(state["since_last"])

    def latest(self) -> float | None:
        """Return the loss of the newest step that was read since the last call of `mean_since_last`."""
        return self._since_last[-1] if self._since_last else None

    def mean_since_last(self) -> float:
        """Return the mean loss of the steps since the last call."""
        mean = sum(self._since_last) / len(self._since_last)
        self._since_last.clear()
        return mean
