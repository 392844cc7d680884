"""The update after a gradient: clipping, Nesterov's step, schedule and average of weights.

Source: NFNet paper, section 4 and appendix A.
"""

import torch
from torch import Tensor, nn

from workbench.optim import AGC, EMA, AGCStats, warmup_cosine
from workbench.training.config import TrainConfig
from workbench.training.setup import groups_of


class Update:
    """The update of a network from its gradients, once per step.

    Args:
        model: The network, whose parameters have the gradients.
        config: The configuration.
        total_steps: Steps of the whole training.
        example: An input, for networks whose classifier cannot be found without.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, total_steps: int, example: Tensor | None = None):
        sgd = {"lr": config.lr, "momentum": config.momentum, "nesterov": config.momentum > 0}
        self.optimizer = torch.optim.SGD(groups_of(model, config, example), **sgd, fused=True)
        self.agc = AGC(self.optimizer, eps=config.clip_eps) if config.clip is not None else None
        self.schedule = warmup_cosine(
            self.optimizer, config.warmup * total_steps, total_steps, config.final_lr / config.lr
        )
        self.ema = EMA(model, config.ema) if config.ema is not None else None
        self.parameters, self.clip_norm = list(model.parameters()), config.clip_norm
        self._norm: Tensor | None = None  # norm of the whole gradient before clipping

    def __call__(self, failed: Tensor | None) -> float:
        """Update the weights and return the learning rate of this update.

        Args:
            failed: () on the device, or None. If it is 1, the weights stay unchanged.
        """
        self.optimizer.found_inf = failed  # pyright: ignore[reportAttributeAccessIssue]  # torch reads it if fused
        lr = self.optimizer.param_groups[0]["lr"]
        if self.clip_norm is not None:
            self._norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()  # AGC clips here, before the update
        self.schedule.step()
        if self.ema is not None:
            self.ema.update()
        return lr

    def agc_stats(self) -> AGCStats:
        """Return the statistics of AGC in the last step, empty if it does not clip."""
        return self.agc.stats if self.agc is not None else AGCStats()

    def clipped(self) -> dict[str, float]:
        """Return what was clipped in the last step, as columns of a history row."""
        if self.agc is not None:
            stats = self.agc.stats
            return {"clipped_share": stats.clipped_share(), "ratio_p99": stats.ratio_quantile(0.99)}
        return {"grad_norm": self._norm.item()} if self._norm is not None else {}

    def state_dict(self) -> dict:
        """Return the state of all parts."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict:
        parts = {"optimizer": self.optimizer, "schedule": self.schedule, "agc": self.agc, "ema": self.ema}
        return {name: part for name, part in parts.items() if part is not None}
