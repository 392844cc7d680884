"""The losses of a training's steps: left on the device, and read only every so often, since reading waits for it."""

import torch
from torch import Tensor


class LossWatch:
    """The losses of the steps and the norms of their gradients.

    A step fails where its loss is not finite or above `limit`, or a gradient's norm is not finite; `step`, `loss` and
    `norms` (P,) are then those of the first that did. `failed` () is 1 on the device from that step on: a fused
    optimizer that has it as `found_inf` leaves the weights as the step found them, though nobody has looked yet.
    """

    def __init__(self, limit: float, every: int):
        self.limit, self.every = limit, every
        self.step, self.loss, self.norms = 0, 0.0, None
        self.failed: Tensor | None = None
        self._unread: list[tuple[Tensor, Tensor]] = []
        self._since_last: list[float] = []

    def diverged(self, step: int, loss: Tensor, norms: Tensor, look: bool) -> bool:
        """Takes the loss () and gradient norms (P,) of `step`, before its update; whether a step so far has failed
        (looked at now, or every so often)."""
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
            if not (value <= self.limit and finite):  # also where the loss is not a number
                self.step, self.loss, self.norms = step - len(values) + 1 + i, value, unread[i]
                return True
        self._since_last += values
        self._unread.clear()
        return False

    def state_dict(self) -> dict:
        return {
            "unread": [(loss.cpu(), norms.cpu()) for loss, norms in self._unread],
            "failed": self.failed,
            "since_last": list(self._since_last),
        }

    def load_state_dict(self, state: dict) -> None:
        self._unread = [(loss, norms) for loss, norms in state["unread"]]
        self.failed = state["failed"]
        self._since_last = list(state["since_last"])

    def mean_since_last(self) -> float:
        """The mean loss of the steps since this was last asked."""
        mean = sum(self._since_last) / len(self._since_last)
        self._since_last.clear()
        return mean
