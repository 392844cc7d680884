"""Moments of a map over its channels, in one pass and with float64 where sums are joined.

Legend: a map is (N, C, ...): samples, channels, positions. Each number is an average over channels of what holds over
samples and positions.
"""

import torch
from torch import Tensor

FAR = 100.0  # a channel's squared mean over its variance, up to which sums of float32 keep five digits


def moments(x: Tensor, gate: Tensor | None = None) -> dict[str, float]:
    """mean_sq (squared channel mean) and var (biased channel variance) of gate * x, without making the product.

    On a CPU by sums and norms, which costs a fraction of a variance kernel; where a channel's mean is so far above its
    deviation that they would lose digits, by that kernel after all.
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
    """E[(x - mean)^4] / var^2, biased: 3 for a normal channel; channels that do not vary are left out."""
    x = x.float() if x.dtype.itemsize < 4 else x
    flat = x.flatten(2).transpose(0, 1).flatten(1)  # (C, values)
    var, mean = torch.var_mean(flat, dim=1, correction=0, keepdim=True)
    live = var.flatten() > 0
    fourth = ((flat[live] - mean[live]) / var[live].sqrt()).pow(4).mean(1)
    return fourth.double().mean().item() if live.any() else float("nan")


def peak(x: Tensor) -> float:
    """The largest absolute value."""
    return x.detach().abs().max().item()
