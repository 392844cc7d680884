"""The learning rate of the paper: proportional to the batch, warmed up linearly, then a cosine to zero."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from workbench.errors import WorkbenchError


def scaled_lr(base_lr: float, batch_size: int) -> float:
    """The peak learning rate by linear scaling, base_lr * batch_size / 256 (NFNet paper: 0.1 at 256, so 1.6 at
    4096)."""
    return base_lr * batch_size / 256


def warmup_cosine(optimizer: Optimizer, warmup_steps: float, total_steps: int, final_share: float = 0.0) -> LambdaLR:
    """A scheduler to step once per optimizer step: 0 at step 0, linear to the peak at `warmup_steps`, cosine to
    `final_share` of the peak at `total_steps`.

    `warmup_steps` may be a fraction (the authors' 5 epochs are 1563.9 steps). The optimizer's own rate is the peak.
    """
    if total_steps < 1 or not 0 <= warmup_steps <= total_steps:
        raise WorkbenchError(
            f"`warmup_steps` (={warmup_steps}) must lie between 0 and `total_steps` (={total_steps}), "
            "which must be positive."
        )
    if not 0 <= final_share <= 1:
        raise WorkbenchError(f"`final_share` (={final_share}) of the peak rate must lie between 0 and 1.")
    return LambdaLR(optimizer, lambda step: _share_of_peak(step, warmup_steps, total_steps, final_share))


def _share_of_peak(step: int, warmup_steps: float, total_steps: int, final: float) -> float:
    if step <= warmup_steps and warmup_steps > 0:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1e-12)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
