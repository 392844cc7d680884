"""The paper's learning rate: proportional to the batch size, linear warm-up, cosine to zero."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from workbench.errors import WorkbenchError


def scaled_lr(base_lr: float, batch_size: int) -> float:
    """Return the peak learning rate by linear scaling, base_lr * batch_size / 256.

    NFNet paper: 0.1 at 256, so 1.6 at 4096.
    """
    return base_lr * batch_size / 256


def warmup_cosine(optimizer: Optimizer, warmup_steps: float, total_steps: int, final_share: float = 0.0) -> LambdaLR:
    """Make a scheduler that warms up linearly from 0 and then falls as a cosine.

    Step it once per optimizer step.

    Args:
        optimizer: Its learning rate is the peak.
        warmup_steps: The step of the peak. It may be a fraction (the authors' 5 epochs are 1563.9 steps).
        total_steps: The step at which the cosine ends.
        final_share: The final rate, as a share of the peak from 0 to 1.

    Returns:
        The scheduler.

    Raises:
        WorkbenchError: If `total_steps` is not positive, `warmup_steps` is not between 0 and `total_steps`, or
            `final_share` is not between 0 and 1.
    """
    if total_steps < 1 or not 0 <= warmup_steps <= total_steps:
        raise WorkbenchError(
            f"`warmup_steps` must be from 0 to `total_steps` (={total_steps}), got {warmup_steps}. "
            "`total_steps` must be at least 1."
        )
    if not 0 <= final_share <= 1:
        raise WorkbenchError(f"`final_share` must be from 0 to 1, got {final_share}. It is a share of the peak rate.")
    return LambdaLR(optimizer, lambda step: _share_of_peak(step, warmup_steps, total_steps, final_share))


def _share_of_peak(step: int, warmup_steps: float, total_steps: int, final: float) -> float:
    if step <= warmup_steps and warmup_steps > 0:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1e-12)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
