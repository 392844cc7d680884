"""What a training sees of itself: the losses of its steps, what AGC clipped, how signals travel.

Losses and norms stay on the device until they are needed.
"""

from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.optim import AGCStats
from workbench.optim.telemetry import table_of_steps
from workbench.probes.signal import in_training, signal_propagation


class LossWatch:
    """The losses of the steps, left on the device and read only every so often, since reading one waits for it.

    Sees at which step the loss first left `limit` or was not finite; `step` and `cause` then say so.
    """

    def __init__(self, limit: float, every: int):
        self.limit, self.every = limit, every
        self.step, self.cause = 0, None
        self._unread: list[Tensor] = []
        self._since_last: list[float] = []

    def diverged(self, step: int, loss: Tensor, look: bool) -> bool:
        """Takes the loss of `step`; whether one of those so far left the limit (looked at now, or every so often)."""
        self._unread.append(loss)
        if not look and step % self.every:
            return False
        values = torch.stack([unread.to(loss.device) for unread in self._unread]).tolist()
        for at, value in enumerate(values, start=step - len(values) + 1):
            if not value <= self.limit:  # also where it is not a number
                self.step, self.cause = at, f"training loss {value:.4g} at step {at}"
                return True
        self._since_last += values
        self._unread.clear()
        return False

    def state_dict(self) -> dict:
        return {"unread": [loss.item() for loss in self._unread], "since_last": list(self._since_last)}

    def load_state_dict(self, state: dict) -> None:
        self._unread = [torch.tensor(loss) for loss in state["unread"]]
        self._since_last = list(state["since_last"])

    def mean_since_last(self) -> float:
        """The mean loss of the steps since this was last asked."""
        mean = sum(self._since_last) / len(self._since_last)
        self._since_last.clear()
        return mean


class Telemetry:
    """What AGC saw, every so many steps: norms on the device until `settle` makes rows of them."""

    def __init__(self, every: int | None):
        self.every = every
        self._unread: list[tuple[int, AGCStats]] = []
        self._tables: list[pd.DataFrame] = []

    def take(self, step: int, stats: AGCStats) -> None:
        if self.every and step % self.every == 0:
            self._unread.append((step, stats))

    def settle(self) -> None:
        if self._unread:
            self._tables.append(table_of_steps(self._unread))
        self._unread.clear()

    def state_dict(self) -> dict:
        return {"rows": self.table().to_dict("list") if self.every else {}}

    def load_state_dict(self, state: dict) -> None:
        self._tables = [pd.DataFrame(state["rows"])] if state["rows"].get("step") else []

    def table(self) -> pd.DataFrame:
        """One row a step and parameter."""
        self.settle()
        return pd.concat(self._tables, ignore_index=True) if self._tables else AGCStats().table()


class Signals:
    """Signal propagation forward and backward, every so many steps, on the same few images each time.

    The gradient is that of the cross-entropy; batch normalization goes by these images, and nothing is dropped.
    """

    def __init__(self, every: int | None, model: nn.Module, batch: Callable[[], tuple[Tensor, Tensor]]):
        self.every, self.model = every, model
        self.batch = batch() if every else None
        self._tables: list[pd.DataFrame] = []

    def take(self, step: int) -> None:
        if not self.every or step % self.every:
            return
        x, y = self.batch
        with in_training(self.model):
            table = signal_propagation(
                self.model, x, backward=lambda out: F.cross_entropy(out.float(), y), dead=True, peak=True
            )
        self._tables.append(table.assign(step=step))

    def state_dict(self) -> dict:
        return {"rows": self.table().to_dict("list")}

    def load_state_dict(self, state: dict) -> None:
        self._tables = [pd.DataFrame(state["rows"])] if state["rows"] else []

    def table(self) -> pd.DataFrame:
        """One row a step and block, as of signal_propagation, with the column `step`."""
        return pd.concat(self._tables, ignore_index=True) if self._tables else pd.DataFrame()
