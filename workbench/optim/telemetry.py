"""What a clipping saw, for the asking: kept as norms on the device, turned into numbers only when somebody looks.

Source: NFNet paper, section 3: the ratio |G_i| / max(|W_i|, eps) is all that the rule looks at, so from it follows what
any other threshold would have clipped, without clipping again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor

LADDER = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)  # the paper's five thresholds, and beyond
QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass
class AGCStats:
    """The norms of all units in one clipping, one tensor (units,) per device and precision.

    `grad_norms` |G_i|; `weight_norms` max(|W_i|, eps); `max_norms` clip * max(|W_i|, eps). Of sharded parameters, the
    units in this process.
    """

    names: list[list[str]] = field(default_factory=list)
    sizes: list[list[int]] = field(default_factory=list)  # units of each parameter
    grad_norms: list[Tensor] = field(default_factory=list)
    weight_norms: list[Tensor] = field(default_factory=list)
    max_norms: list[Tensor] = field(default_factory=list)

    def add(self, names: list[str], sizes: list[int], g_norm: Tensor, w_norm: Tensor, max_norm: Tensor) -> None:
        """Adds the parameters of one device and precision."""
        self.names.append(names)
        self.sizes.append(sizes)
        self.grad_norms.append(g_norm)
        self.weight_norms.append(w_norm)
        self.max_norms.append(max_norm)

    @property
    def units(self) -> int:
        return sum(g.numel() for g in self.grad_norms)

    def clipped_share(self) -> float:
        """The share of units whose gradient was scaled down, from 0 to 1 (0 where there was nothing to clip)."""
        pairs = zip(self.grad_norms, self.max_norms, strict=True)
        return sum((g > m).sum().item() for g, m in pairs) / max(self.units, 1)

    def ratios(self) -> Tensor:
        """|G_i| / max(|W_i|, eps) of all units, (units,) float64 on the CPU."""
        pairs = zip(self.grad_norms, self.weight_norms, strict=True)
        return torch.cat([(g / w).double().cpu() for g, w in pairs]) if self.grad_norms else torch.zeros(0).double()

    def ratio_quantile(self, q: float) -> float:
        """The q-quantile over units of |G_i| / max(|W_i|, eps), by the nearest unit above; 0 without units."""
        return _quantile(self.ratios(), q)

    def would_clip(self, clip: float) -> float:
        """The share of units that the threshold `clip` would have clipped, had it been in force."""
        ratios = self.ratios()
        return (ratios > clip).double().mean().item() if len(ratios) else 0.0

    def table(self, ladder: Sequence[float] = LADDER, quantiles: Sequence[float] = QUANTILES) -> pd.DataFrame:
        """One row a parameter: parameter, units, clipped_share, quantiles of the ratio (ratio_q50, ...), and for each
        threshold of the `ladder` the share of units that it would have clipped (at_0.01, ...)."""
        clipped = [g > m for g, m in zip(self.grad_norms, self.max_norms, strict=True)]
        clipped = torch.cat([c.cpu() for c in clipped]) if clipped else torch.zeros(0, dtype=torch.bool)
        names = [name for kind in self.names for name in kind]
        sizes = [size for kind in self.sizes for size in kind]
        rows = []
        for name, size, ratio, was in zip(names, sizes, self.ratios().split(sizes), clipped.split(sizes), strict=True):
            row = {"parameter": name, "units": size, "clipped_share": was.double().mean().item() if size else 0.0}
            row |= {f"ratio_q{100 * q:g}": _quantile(ratio, q) for q in quantiles}
            row |= {f"at_{clip:g}": (ratio > clip).double().mean().item() if size else 0.0 for clip in ladder}
            rows.append(row)
        columns = ["parameter", "units", "clipped_share", *(f"ratio_q{100 * q:g}" for q in quantiles)]
        return pd.DataFrame(rows, columns=[*columns, *(f"at_{clip:g}" for clip in ladder)])


def _quantile(values: Tensor, q: float) -> float:
    if not len(values):
        return 0.0
    return values.sort().values[min(int(q * len(values)), len(values) - 1)].item()
