"""Formulas for the moments of a map after layers with random weights.

Source: NFNet precursor paper, section 4, whose derivation of scaled weight standardisation is applied layer by layer.

A map is described by statistics of its channels. The channel means are normal with mean `m` and variance `M`. Each
channel has variance `V` over samples and positions, with autocorrelation `R` over lags in space. An activation turns
these into the moments A, B and C (by quadrature). A convolution with random weights of variance c / fan-in, which reads
N values j, turns them into::

    plain:         m = 0,  M = c * B,           V = c * C                 B = E[mean_j^2], C = E[var_j]
    standardised:  m = 0,  M = c * (B - A^2),   V = c * (C - G) N/(N-1)   A = E[mean_j]

Centred weights remove what all N inputs have in common. That is the mean A over channels and, over samples and
positions, the variance G of the average over the window. For independent channels of white noise, G is C / N, so V is
c * C again. Natural images hardly vary within a window, so there G is most of C. For ReLU and plain weights, the result
is the arc-cosine kernel. For a standardised network on white noise, it is mean 0 and variance 1.

Backward, layers multiply the variance of a gradient:

- an activation g by E[g'(x)^2];
- a convolution from I to O channels with stride s by c O / (I s^2), if its weights are independent of the gradient;
- a BatchNorm by 1 / V.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.models.layers import same_padding

WHITE = np.array([[1.0, 0.0], [0.0, 0.0]])  # correlation at lags (0, 0), (0, 1), ...; larger lags are as at the edge


@dataclass(frozen=True)
class Trunk:
    """Moments of a map.

    Attributes:
        m: Mean of the channel means.
        M: Variance of the channel means, which are normal.
        V: Variance within a channel.
        size: Height and width of the map, pixels. None: borders are ignored.
        R: R[i, j] is the correlation of pixels i rows and j columns apart.
        back: Factor of a gradient's variance on its way back from here to the start.
    """

    m: float
    M: float
    V: float
    size: int | None = None
    R: np.ndarray = field(default_factory=lambda: WHITE)
    back: float = 1.0


@dataclass(frozen=True)
class Activated:
    """Moments of a map after an activation.

    Attributes:
        A: E[mean] over channels.
        B: E[mean^2] over channels.
        C: E[var] over channels.
        size: As of `Trunk`.
        R: As of `Trunk`.
        average: Covariance over lags of the average over channels. None: the channels are independent.
        back: As of `Trunk`.
    """

    A: float
    B: float
    C: float
    size: int | None = None
    R: np.ndarray = field(default_factory=lambda: WHITE)
    average: np.ndarray | None = None
    back: float = 1.0


def noise(image_size: int | None) -> Activated:
    """Return the moments of images of independent N(0, 1) pixels."""
    return Activated(0.0, 0.0, 1.0, image_size)


def pixels_of(images: Tensor) -> Activated:
    """Measure the moments of images (N, C, H, W), with correlations over space and channels.

    Raises:
        WorkbenchError: If the images do not vary.
    """
    x = images.detach().double().cpu()
    mean = x.mean((0, 2, 3))
    centred = x - mean.view(1, -1, 1, 1)
    S, average = _autocovariance(centred), _autocovariance(centred.mean(1, keepdim=True))
    if not S[0, 0] > 0:
        raise WorkbenchError("`images` must vary, but every pixel has the same value. Check how they are made.")
    A, B = mean.mean().item(), mean.square().mean().item()
    return Activated(A, B, S[0, 0], images.shape[-1], S / S[0, 0], average)


def activate(fn, h: Trunk) -> Activated:
    """Compute the moments of a map after an activation.

    x is N(mu, V) within a channel, and mu is N(m, M) over channels. Correlations come from a Hermite series.

    Args:
        fn: The activation.
        h: Moments of x.

    Returns:
        Moments of fn(x).

    Raises:
        WorkbenchError: If the function is not elementwise.
    """
    z, w = _normal_grid(2000)
    u, v = _normal_grid(61) if h.M > 0 else (np.zeros(1), np.ones(1))
    x = (h.m + math.sqrt(h.M) * u)[:, None] + math.sqrt(h.V) * z  # (channels, values)
    y, slope = _elementwise(fn, torch.from_numpy(x))
    mean = y @ w
    var = np.square(y) @ w - mean**2
    C = float(v @ var)
    R = h.R if h.R is WHITE else _activated_correlation(y, z, w, v, h.R, C)
    back = h.back * float(v @ (np.square(slope) @ w))
    return Activated(float(v @ mean), float(v @ mean**2), C, h.size, R, back=back)


def _elementwise(fn, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Compute fn(x) and fn'(x)."""
    leaf = x.detach().requires_grad_()
    try:
        with torch.enable_grad():
            y = fn(leaf)
        few = fn(x[:, :4])
    except RuntimeError:  # the function needs other shapes
        y = few = x[:0]
    if y.shape != x.shape or not torch.allclose(y.detach()[:, :4], few):
        raise WorkbenchError(
            "expected_signal covers only elementwise activations, but this one mixes channels. "
            "Measure the network with signal_propagation."
        )
    slope = torch.autograd.grad(y.sum(), leaf)[0] if y.requires_grad else torch.zeros_like(x)
    return y.detach().numpy(), slope.numpy()


def _activated_correlation(y: np.ndarray, z: np.ndarray, w: np.ndarray, v: np.ndarray, R: np.ndarray, C: float):
    """Compute the correlation after the activation.

    It is sum_k a_k^2 R^k / C over Hermite coefficients a_k, k >= 1.
    """
    out, share = np.zeros_like(R), 0.0
    before, here = np.zeros_like(z), np.ones_like(z)  # normalised Hermite polynomials, by their recurrence
    for k in range(1, 25):
        before, here = here, (z * here - math.sqrt(k - 1) * before) / math.sqrt(k)
        power = float(v @ np.square(y @ (w * here))) / C
        out, share = out + power * R**k, share + power
    return out + (1 - share) * (R >= 1)  # the share of higher orders counts as uncorrelated


def convolve(
    a: Activated,
    *,
    c: float,
    kernel_size: int,
    stride: int,
    channels: int,
    out: int | None = None,
    centred: bool = True,
) -> Trunk:
    """Follow a map through a convolution with new random weights of variance c / fan-in.

    At a border, only some of the kernel's taps are on pixels. A mean that is constant inside then becomes variance over
    positions.

    Args:
        a: Moments of the input.
        c: Variance of the weights times fan-in.
        kernel_size: Height and width of the kernel.
        stride: Stride of the convolution.
        channels: Input channels per group.
        out: Output channels per group. None: as many as `channels`.
        centred: Whether the weights of each filter have mean 0.

    Returns:
        Moments of the output.
    """
    A2, fan_in = (a.A**2, channels * kernel_size**2) if centred else (0.0, 0)
    S = a.C * a.R
    if centred and fan_in > 1:
        average = S / channels if a.average is None else a.average
        S = (S - _windowed(average, kernel_size)) * fan_in / (fan_in - 1)
    share, share_sq, overlap, size = 1.0, 1.0, 1.0, None
    if a.size is not None:
        share, share_sq, overlap = _taps(a.size, kernel_size, stride)
        size = -(-a.size // stride)
    M = c * (a.B * overlap - A2 * share**2)
    V = c * (S[0, 0] * share + a.B * (share - overlap) - A2 * (share_sq - share**2))
    R = _correlation(S[::stride, ::stride] if a.R is not WHITE else None)
    back = a.back * c * share * (out or channels) / (channels * stride**2)
    return Trunk(0.0, max(M, 0.0), V, size, R, back)


def add(shortcut: Trunk, branch: Trunk, g: float) -> Trunk:
    """Return the moments of shortcut + g * branch, whose weights are independent."""
    V = shortcut.V + g**2 * branch.V
    if shortcut.R is WHITE and branch.R is WHITE:
        R = WHITE
    else:
        n = max(len(shortcut.R), len(branch.R))
        R = (shortcut.V * _extended(shortcut.R, n) + g**2 * branch.V * _extended(branch.R, n)) / V
    back = shortcut.back + g**2 * branch.back
    return Trunk(shortcut.m + g * branch.m, shortcut.M + g**2 * branch.M, V, branch.size, R, back)


def avg_pool(a: Activated) -> Activated:
    """Follow a map through a 2x2 average pool with stride 2.

    On white noise, the variance within a channel falls to a quarter and the mean stays. Each of four pixels gets a
    quarter of the gradient.
    """
    smooth = _windowed(a.R, 2)
    size = None if a.size is None else -(-a.size // 2)
    R = _correlation(smooth[::2, ::2] if a.R is not WHITE else None)
    return Activated(a.A, a.B, a.C * smooth[0, 0], size, R, back=a.back / 16)


def max_pool(h: Trunk) -> Trunk:
    """Follow a map through a 3x3 max-pool with stride 2, as maxima of a normal field.

    The windows overlap, so even white noise is correlated after the pool.
    """
    size = None if h.size is None else -(-h.size // 2)
    mean, S = _pooled_field(_extended(h.R, max(17, len(h.R))))
    if h.R is WHITE:  # exact: the maximum of nine independent values
        x = np.linspace(-9, 9, 20001)
        cdf = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        density = 9 * cdf**8 * np.exp(-x * x / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
        mean = float((density * x).sum())
        S = S * (float((density * x * x).sum()) - mean**2) / S[0, 0]
    return Trunk(h.m + math.sqrt(h.V) * mean, h.M, h.V * S[0, 0], size, _correlation(S))


def _pooled_field(R: np.ndarray) -> tuple[float, np.ndarray]:
    """Estimate mean and covariance over lags of 3x3 maxima of periodic normal fields.

    R is the correlation of the fields.
    """
    n = 2 * (len(R) - 1)
    lag = np.minimum(np.arange(n), n - np.arange(n))
    spectrum = np.fft.fft2(R[np.ix_(lag, lag)]).real.clip(min=0)
    count = max(16, 2**18 // n**2)
    white = torch.randn(count, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    drawn = np.fft.ifft2(np.fft.fft2(white) * np.sqrt(spectrum)).real
    drawn /= math.sqrt(spectrum.mean())
    ring = F.pad(torch.from_numpy(drawn)[:, None], (1, 1, 1, 1), mode="circular")
    pooled = F.max_pool2d(ring, 3, 2)
    mean = pooled.mean()
    return mean.item(), _autocovariance(pooled - mean)


def _autocovariance(x: Tensor) -> np.ndarray:
    """Compute E[x(p) x(p + lag)] of centred maps (N, C, H, W).

    The lags reach half of the map's side. Both signs of a lag are averaged.
    """
    h, w = x.shape[-2:]
    transform = torch.fft.rfft2(x, s=(2 * h, 2 * w))
    sums = torch.fft.irfft2(transform.abs().square(), s=(2 * h, 2 * w)).mean((0, 1))
    rows, columns = max(2, h // 2 + 1), max(2, w // 2 + 1)
    pairs = (h - torch.arange(rows))[:, None] * (w - torch.arange(columns))[None, :]
    i, j = torch.arange(rows), torch.arange(columns)
    both = (sums[i][:, j] + sums[i][:, (2 * w - j) % (2 * w)]) / 2
    n = min(rows, columns)
    return (both / pairs).numpy()[:n, :n]


def _windowed(S: np.ndarray, k: int) -> np.ndarray:
    """Compute the covariance of averages over k x k windows from that of single values."""
    weight = {d: (k - abs(d)) / k**2 for d in range(1 - k, k)}
    lag, edge = np.arange(len(S)), len(S) - 1
    out = np.zeros_like(S)
    for d, wd in weight.items():
        for e, we in weight.items():
            rows, columns = np.minimum(np.abs(lag + d), edge), np.minimum(np.abs(lag + e), edge)
            out += wd * we * S[np.ix_(rows, columns)]
    return out


def _correlation(S: np.ndarray | None) -> np.ndarray:
    """Divide S by its value at lag 0.

    None or a single pixel gives the correlation of white noise.
    """
    return WHITE if S is None or len(S) < 2 or not S[0, 0] > 0 else S / S[0, 0]


def _extended(R: np.ndarray, n: int) -> np.ndarray:
    return np.pad(R, (0, n - len(R)), mode="edge")


def _taps(size: int, kernel_size: int, stride: int) -> tuple[float, float, float]:
    """Compute statistics of the kernel's taps over the positions of a square map.

    Returns:
        Mean share of taps on real pixels, mean squared share, and mean share that two positions have in common.
    """
    before, after = same_padding(size, kernel_size, stride)
    start = np.arange(0, size + before + after - kernel_size + 1, stride) - before
    tap = start[:, None] + np.arange(kernel_size)
    real = ((tap >= 0) & (tap < size)).astype(float)  # (positions, taps) of one axis; the square covers both axes
    return real.mean() ** 2, np.square(real.mean(1)).mean() ** 2, (real @ real.T / kernel_size).mean() ** 2


def _normal_grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return values and weights for expectations over N(0, 1).

    The grid is fine because activations have kinks. An even `n` leaves out 0, where most kinks are.
    """
    z = np.linspace(-8, 8, n)
    density = np.exp(-z * z / 2)
    return z, density / density.sum()
