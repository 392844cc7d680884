"""What signal propagation should show at initialisation, from the architecture alone.

Source: the derivation of scaled weight standardisation in the NFNet precursor paper, section 4, carried through
blocks. The trunk is described by three numbers: over its channels, the channel means are normal with mean `m` and
variance `M`; each channel varies by `V` over samples and positions. An activation turns those into the moments A, B,
C below (by quadrature), and a convolution with random weights of variance c / fan-in turns them into

    plain:         m = 0,  M = c * B,           V = c * C        B = E[mean_j^2], C = E[var_j]
    standardised:  m = 0,  M = c * (B - A^2),   V = c * C        A = E[mean_j]: centred weights remove the common mean

For ReLU and plain weights this is the arc-cosine kernel; for a standardised network it says mean 0, variance 1.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from workbench.errors import WorkbenchError
from workbench.models.layers import PlainConv2d, ScaledStdConv2d, same_padding
from workbench.probes.signal import COLUMNS, residual_blocks


@dataclass(frozen=True)
class Trunk:
    """Channel means ~ N(m, M), variance V within a channel, on maps of `size` pixels a side (None: borders are
    ignored)."""

    m: float
    M: float
    V: float
    size: int | None = None


@dataclass(frozen=True)
class Activated:
    """Moments of an activated map over its channels: A = E[mean], B = E[mean^2], C = E[var]."""

    A: float
    B: float
    C: float
    size: int | None = None


def expected_signal(model: nn.Module, image_size: int | None = None) -> pd.DataFrame:
    """The columns of `signal_propagation`, predicted for N(0, 1) images at initialisation.

    Args: `image_size` H = W of the input; with it, the taps that zero padding cuts off at the borders are counted.
    Knows our families: stems, pooling, scaled-standardised, plain and BatchNorm nets in training mode. BatchNorm is
    taken as exact. Squeeze-excite gates are taken at 1/2, their value for pooled zeros. Raises: WorkbenchError for
    other models.
    """
    blocks = residual_blocks(model)
    trunk = _stem(model, image_size)
    rows = [_row(0, -1, trunk, math.nan)]
    for i, block in enumerate(blocks):
        trunk, residual = _block(block, trunk)
        rows.append(_row(i + 1, block.stage, trunk, residual.V))
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(block: int, stage: int, trunk: Trunk, residual_var: float) -> dict:
    return {
        "block": block,
        "stage": stage,
        "mean_sq": trunk.m**2 + trunk.M,
        "var": trunk.V,
        "residual_var": residual_var,
    }


def _stem(model: nn.Module, image_size: int | None) -> Trunk:
    pixels = Activated(0.0, 0.0, 1.0, image_size)
    if isinstance(model.stem, nn.ModuleList):
        trunk = conv(model.stem[0], pixels)
        for layer in list(model.stem)[1:]:
            trunk = conv(layer, activate(model.act, trunk))
        return trunk
    trunk = conv(model.stem, pixels)
    return max_pool(trunk) if model.pool else trunk


def _block(block: nn.Module, h: Trunk) -> tuple[Trunk, Trunk]:
    """The trunk after the block, and its residual branch."""
    if getattr(block, "post_activation", False):
        raise WorkbenchError(
            "expected_signal follows pre-activation blocks; FixUp's activation comes after the addition, "
            "and leaves a trunk that is not normal: measure it with signal_propagation."
        )
    a = activate(block.act, normalized(block, "norm0", h))
    out = conv(block.conv0, a)
    out = conv(block.conv1, activate(block.act, normalized(block, "norm1", out)))
    if getattr(block, "conv1b", None) is not None:
        out = conv(block.conv1b, activate(block.act, out))
    out = conv(block.conv2, activate(block.act, normalized(block, "norm2", out)))
    if block.squeeze_excite is not None and not hasattr(block, "skip_gain"):
        out = Trunk(out.m / 2, out.M / 4, out.V / 4, out.size)  # the NF nets double their gates
    if block.is_transition:
        pools = getattr(block, "stride", 1) == 2 and block.conv_shortcut.stride == 1
        shortcut = conv(block.conv_shortcut, avg_pool(a) if pools else a)
    else:
        shortcut = h
    g = block.alpha * (block.skip_gain.item() if hasattr(block, "skip_gain") else 1.0)
    return Trunk(shortcut.m + g * out.m, shortcut.M + g**2 * out.M, shortcut.V + g**2 * out.V, out.size), out


def normalized(block: nn.Module, name: str, h: Trunk) -> Trunk:
    """After BatchNorm every channel has mean 0 and variance 1; without, the trunk itself."""
    return Trunk(0.0, 0.0, 1.0, h.size) if hasattr(block, name) else h


def activate(fn, h: Trunk) -> Activated:
    """Moments of fn(x), x ~ N(mu, V) within a channel, mu ~ N(m, M) over channels."""
    z, w = _normal_grid(2001)
    u, v = _normal_grid(61) if h.M > 0 else (np.zeros(1), np.ones(1))
    x = (h.m + math.sqrt(h.M) * u)[:, None] + math.sqrt(h.V) * z  # (channels, values)
    y = fn(torch.from_numpy(x)).numpy()
    mean = y @ w
    var = np.square(y) @ w - mean**2
    return Activated(float(v @ mean), float(v @ mean**2), float(v @ var), h.size)


def conv(layer: nn.Module, a: Activated) -> Trunk:
    """Through a convolution with freshly drawn weights; constants folded into its scale included.

    At a border only some taps meet pixels, so a mean that is constant inside becomes variance over positions.
    """
    if type(layer) is ScaledStdConv2d:  # timm's pads and starts otherwise
        c, centred = layer.scale**2, a.A**2  # centred weights take the common mean A out, as far as all taps are there
    elif isinstance(layer, PlainConv2d):
        c, centred = layer.scale**2 * layer.init_gain, 0.0
    else:
        raise WorkbenchError(
            f"expected_signal knows the convolutions of workbench.models.layers, but met {type(layer).__name__}."
        )
    share, share_sq, overlap, size = 1.0, 1.0, 1.0, None
    if a.size is not None:
        share, share_sq, overlap = _taps(a.size, layer.kernel_size, layer.stride)
        size = -(-a.size // layer.stride)
    M = c * (a.B * overlap - centred * share**2)
    V = c * (a.C * share + a.B * (share - overlap) - centred * (share_sq - share**2))
    return Trunk(0.0, max(M, 0.0), V, size)


def _taps(size: int, kernel_size: int, stride: int) -> tuple[float, float, float]:
    """Over the positions of a square map: mean share of taps on real pixels, mean squared share, mean share that two
    positions have in common."""
    before, after = same_padding(size, kernel_size, stride)
    start = np.arange(0, size + before + after - kernel_size + 1, stride) - before
    tap = start[:, None] + np.arange(kernel_size)
    real = ((tap >= 0) & (tap < size)).astype(float)  # (positions, taps) along one axis; the map is its square
    return real.mean() ** 2, np.square(real.mean(1)).mean() ** 2, (real @ real.T / kernel_size).mean() ** 2


def max_pool(h: Trunk) -> Trunk:
    """3x3 over values taken as independent: the moments of the largest of nine normals."""
    x = np.linspace(-9, 9, 20001)
    cdf = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    density = 9 * cdf**8 * np.exp(-x * x / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    mean = float((density * x).sum())
    var = float((density * x * x).sum()) - mean**2
    size = None if h.size is None else -(-h.size // 2)
    return Trunk(h.m + math.sqrt(h.V) * mean, h.M, h.V * var, size)


def avg_pool(a: Activated) -> Activated:
    """2x2 over white noise: the variance within a channel falls to a quarter, its mean stays."""
    return Activated(a.A, a.B, a.C / 4, None if a.size is None else -(-a.size // 2))


def _normal_grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and weights of the expectation over N(0, 1); a fine grid, because activations have kinks."""
    z = np.linspace(-8, 8, n)
    density = np.exp(-z * z / 2)
    return z, density / density.sum()
