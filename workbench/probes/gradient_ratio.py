"""Ratios of gradient norm to weight norm, |G_i| / |W_i|, which AGC limits."""

import pandas as pd
import torch
from torch import nn

from workbench.optim.norms import unit_norms
from workbench.optim.units import units_of


def gradient_ratios(model: nn.Module, eps: float = 1e-3) -> pd.DataFrame:
    """Summarise |G_i| / max(|W_i|, eps) over the units i of each parameter.

    Call it after backward(). Source: NFNet paper, section 3.

    Args:
        model: The network. Parameters without a gradient are left out.
        eps: Lower bound of a unit's weight norm.

    Returns:
        One row per parameter, with the columns parameter (its name), units (their number), median, p99 and max.
    """
    rows, layouts = [], units_of(model)
    for name, p in model.named_parameters():
        if p.grad is not None:
            units = layouts.get(id(p))
            ratio = (unit_norms(p.grad, units) / unit_norms(p.detach(), units).clamp_min(eps)).double().cpu()
            median, p99 = torch.quantile(ratio, torch.tensor([0.5, 0.99], dtype=torch.float64)).tolist()
            rows.append(
                {"parameter": name, "units": ratio.numel(), "median": median, "p99": p99, "max": ratio.max().item()}
            )
    return pd.DataFrame(rows, columns=["parameter", "units", "median", "p99", "max"])
