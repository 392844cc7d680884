"""The ratio that AGC looks at, |G_i| / |W_i|, per parameter."""

import pandas as pd
import torch
from torch import nn

from workbench.optim import unitwise_norm


def gradient_ratios(model: nn.Module, eps: float = 1e-3) -> pd.DataFrame:
    """One row a parameter that has a gradient: name, units, and the median, 99th percentile and maximum of |G_i| /
    max(|W_i|, eps).

    Source: NFNet paper, section 3. Call it after backward().
    """
    rows = []
    for name, p in model.named_parameters():
        if p.grad is not None:
            ratio = (unitwise_norm(p.grad) / unitwise_norm(p.detach()).clamp_min(eps)).flatten().double().cpu()
            median, p99 = torch.quantile(ratio, torch.tensor([0.5, 0.99], dtype=torch.float64)).tolist()
            rows.append(
                {"parameter": name, "units": ratio.numel(), "median": median, "p99": p99, "max": ratio.max().item()}
            )
    return pd.DataFrame(rows, columns=["parameter", "units", "median", "p99", "max"])
