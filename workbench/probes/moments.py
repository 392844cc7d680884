"""Moments of maps (N, C, ...), computed in one pass.

A map has samples, channels and positions. Each moment is taken over samples and positions, and then averaged over
channels. Sums are joined in float64.
"""

import torch
from torch import Tensor

FAR = 100.0  # up to this ratio of a channel's squared mean to its variance, float32 sums keep five digits


def moments(x: Tensor, gate: Tensor | None = None) -> dict[str, float]:
    """Compute the moments of gate * x without making the product.

    On a CPU, sums and norms are much cheaper than a variance kernel. The kernel is used only if a channel's mean is so
    large, compared with its deviation, that sums lose digits.

    Args:
        x: Map (N, C, ...).
        gate: Factor (N, C, 1, ...), as of squeeze-excite. None: 1.

    Returns:
        "mean_sq", the squared channel mean, and "var", the biased channel variance.
    """
    x = x.float() if x.dtype.itemsize < 4 else x
    if x.device.type == "cpu" and x.dtype == torch.float32:
        maps, n = x.flatten(2), x.numel() // x.shape[1]
        sums, squares = maps.sum(2).double(), torch.linalg.vector_norm(maps, dim=2).double().square()  # (N, C)
        if gate is not None:
            factor = gate.double().flatten(1)
            sums, squares = sums * factor, squares * factor.square()
        mean = sums.sum(0) / n
        var = squares.sum(0) / n - mean.square()
        if (mean.square() <= FAR * var).all():
            return {"mean_sq": mean.square().mean().item(), "var": var.mean().item()}
    x = (x if gate is None else gate * x).flatten(2)
    var, mean = torch.var_mean(x, dim=(0, 2), correction=0)
    return {"mean_sq": mean.double().square().mean().item(), "var": var.double().mean().item()}


def kurtosis(x: Tensor) -> float:
    """Compute the biased kurtosis E[(x - mean)^4] / var^2, which is 3 for a normal channel.

    Channels that do not vary are left out. If none varies, the result is NaN.
    """
    x = x.float() if x.dtype.itemsize < 4 else x
    flat = x.flatten(2).transpose(0, 1).flatten(1)  # (C, values)
    var, mean = torch.var_mean(flat, dim=1, correction=0, keepdim=True)
    live = var.flatten() > 0
    fourth = ((flat[live] - mean[live]) / var[live].sqrt()).pow(4).mean(1)
    return fourth.double().mean().item() if live.any() else float("nan")


def peak(x: Tensor) -> float:
    """Return the largest absolute value."""
    return x.detach().abs().max().item()
