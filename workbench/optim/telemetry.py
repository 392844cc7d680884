"""Norms and ratios of a clipping. They stay on the device until you read them.

Source: NFNet paper, section 3. The rule depends on the ratio |G_i| / max(|W_i|, eps) alone. So the ratios show what any
other threshold would have clipped, without clipping again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from workbench.optim.names import inner_name

if TYPE_CHECKING:
    import pandas as pd

LADDER = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)  # the paper's five thresholds, and larger ones
QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass
class AGCStats:
    """The norms of all units in one clipping.

    The lists have one entry per device and precision. For sharded parameters they hold the units of this process.

    Attributes:
        names: Names of the parameters.
        sizes: Number of units of each parameter.
        grad_norms: |G_i|, (units,).
        weight_norms: max(|W_i|, eps), (units,).
        max_norms: clip * max(|W_i|, eps), (units,).
        order: All names in the order of the call, which is the order of the table.
        seen: Whether there was a clipping. False before the first step of an optimizer with AGC.
    """

    names: list[list[str]] = field(default_factory=list)
    sizes: list[list[int]] = field(default_factory=list)
    grad_norms: list[Tensor] = field(default_factory=list)
    weight_norms: list[Tensor] = field(default_factory=list)
    max_norms: list[Tensor] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    seen: bool = True

    def add(self, names: list[str], sizes: list[int], g_norm: Tensor, w_norm: Tensor, max_norm: Tensor) -> None:
        """Add the parameters of one device and precision."""
        self.names.append(names)
        self.sizes.append(sizes)
        self.grad_norms.append(g_norm)
        self.weight_norms.append(w_norm)
        self.max_norms.append(max_norm)

    @property
    def units(self) -> int:
        """The number of units."""
        return sum(g.numel() for g in self.grad_norms)

    def clipped_share(self) -> float:
        """Return the share of units whose gradient was scaled down, from 0 to 1 (0 without units)."""
        pairs = zip(self.grad_norms, self.max_norms, strict=True)
        return sum((g > m).sum().item() for g, m in pairs) / max(self.units, 1)

    def not_finite(self) -> dict[str, int]:
        """Count the units whose gradient norm is not finite, by parameter. Parameters without such units are left out.

        AGC sets all gradients of these units to nan.
        """
        counts: dict[str, int] = {}
        for names, sizes, norms in zip(self.names, self.sizes, self.grad_norms, strict=True):
            for name, bad in zip(names, (~norms.isfinite()).split(sizes), strict=True):
                counts[name] = int(bad.sum())
        return {name: counts[name] for name in self.order if counts.get(name)}

    def ratios(self) -> Tensor:
        """Return |G_i| / max(|W_i|, eps) of all units, (units,) float64 on the CPU."""
        pairs = zip(self.grad_norms, self.weight_norms, strict=True)
        return torch.cat([(g / w).double().cpu() for g, w in pairs]) if self.grad_norms else torch.zeros(0).double()

    def ratio_quantile(self, q: float) -> float:
        """Return the q-quantile of the ratios by the nearest unit above (0 without units)."""
        return _quantile(self.ratios(), q)

    def would_clip(self, clip: float) -> float:
        """Return the share of units that `clip` would have clipped, from 0 to 1 (0 without units)."""
        ratios = self.ratios()
        return (ratios > clip).double().mean().item() if len(ratios) else 0.0

    def table(self, ladder: Sequence[float] = LADDER, quantiles: Sequence[float] = QUANTILES) -> "pd.DataFrame":
        """Tabulate the clipping by parameter.

        Args:
            ladder: Thresholds to compare.
            quantiles: Quantiles of the ratio, from 0 to 1.

        Returns:
            One row per parameter: parameter, units, clipped_share, one column per quantile (ratio_q50, ...), and for
            each threshold the share of units that it would have clipped (at_0.01, ...).
        """
        return table_of_steps([(0, self)], ladder, quantiles).drop(columns="step")


def table_of_steps(
    steps: Sequence[tuple[int, AGCStats]], ladder: Sequence[float] = LADDER, quantiles: Sequence[float] = QUANTILES
) -> "pd.DataFrame":
    """Tabulate the clipping of several steps. This costs little more than the table of one step.

    Args:
        steps: Pairs (step, its norms).
        ladder: Thresholds to compare.
        quantiles: Quantiles of the ratio, from 0 to 1.

    Returns:
        The columns of `AGCStats.table`, and the column `step`.
    """
    step_of, names, units, place = [], [], [], []
    ratios, limits = [], []
    for step, stats in steps:
        at = {name: i for i, name in enumerate(stats.order)}
        for these, sizes in zip(stats.names, stats.sizes, strict=True):
            step_of += [step] * len(these)
            names += [inner_name(name) for name in these]
            units += sizes
            place += [at.get(name, 0) for name in these]
        norms = zip(stats.grad_norms, stats.weight_norms, stats.max_norms, strict=True)
        for g, w, max_norm in norms:
            ratios.append((g / w).float().cpu())
            limits.append((g > max_norm).cpu())
    units = np.array(units, dtype=np.int64)
    ratio = torch.cat(ratios).numpy() if ratios else np.zeros(0, np.float32)
    clipped = torch.cat(limits).numpy() if limits else np.zeros(0, bool)
    first = np.cumsum(units) - units
    # Floats that are not negative sort like their bits. With the row number as the high bits, one sort orders all rows.
    row = np.arange(len(units), dtype=np.uint64) << np.uint64(32)
    keys = np.sort(np.repeat(row, units) | ratio.view(np.uint32))
    ranked = (keys & np.uint64(2**32 - 1)).astype(np.uint32).view(np.float32)

    columns = {"step": step_of, "parameter": names, "units": units, "clipped_share": _share(clipped, first, units)}
    for q in quantiles:
        index = first + np.minimum((q * units).astype(np.int64), units - 1)
        columns[f"ratio_q{100 * q:g}"] = np.where(units > 0, ranked[index] if len(ranked) else 0.0, 0.0).astype(float)
    for clip in ladder:
        below = np.float32(clip) if np.float32(clip) <= clip else np.nextafter(np.float32(clip), np.float32(0))
        above = first + units - np.searchsorted(keys, row | below.view(np.uint32), side="right")
        columns[f"at_{clip:g}"] = above / np.maximum(units, 1)
    order = np.lexsort((place, step_of))
    import pandas as pd  # late, because it takes a fifth of torch's time

    return pd.DataFrame({name: np.asarray(values)[order] for name, values in columns.items()})


def _share(holds: np.ndarray, first: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return for each row the share of its units for which `holds` is true (0 without units)."""
    total = np.concatenate([[0], np.cumsum(holds)])
    return (total[first + units] - total[first]) / np.maximum(units, 1)


def _quantile(values: Tensor, q: float) -> float:
    if not len(values):
        return 0.0
    return values.sort().values[min(int(q * len(values)), len(values) - 1)].item()
