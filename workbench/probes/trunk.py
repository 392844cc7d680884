"""The calculus of signal propagation: what layers with random weights do to the moments of a map.

Source: the derivation of scaled weight standardisation in the NFNet precursor paper, section 4, carried through
layers. A map is described over its channels: the channel means are normal with mean `m` and variance `M`; each channel
varies by `V` over samples and positions, with the autocorrelation `R` over lags in space. An activation turns those
into the moments A, B, C below (by quadrature), and a convolution with random weights of variance c / fan-in turns them
into

    plain:         m = 0,  M = c * B,           V = c * C                 B = E[mean_j^2], C = E[var_j]
    standardised:  m = 0,  M = c * (B - A^2),   V = c * (C - G) N/(N-1)   A = E[mean_j]

for centred weights remove what all their N inputs have in common: the mean A over channels and, over samples and
positions, the variance G of the average over the window. Of independent channels of white noise G is C / N, so V is
c * C again; natural images are nearly alike under a window, so there G is most of C. For ReLU and plain weights this is
the arc-cosine kernel; for a standardised network on white noise it says mean 0, variance 1.

Backward, a gradient's variance is multiplied by E[g'(x)^2] at an activation, by c O / (I s^2) at a convolution from I
to O channels with stride s, whose weights are taken to be independent of the gradient, and by 1 / V at a BatchNorm.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.models.layers import same_padding

WHITE = np.array([[1.0, 0.0], [0.0, 0.0]])  # correlation at lags (0, 0), (0, 1), ...; beyond its edge as at its edge


@dataclass(frozen=True)
class Trunk:
    """Channel means ~ N(m, M), variance V within a channel, on maps of `size` pixels a side (None: borders are
    ignored); R[i, j] the correlation of pixels i rows and j columns apart. `back` is what a gradient's variance is
    multiplied by on its way from here to where the count was started."""

    m: float
    M: float
    V: float
    size: int | None = None
    R: np.ndarray = field(default_factory=lambda: WHITE)
    back: float = 1.0


@dataclass(frozen=True)
class Activated:
    """Moments of a map over its channels: A = E[mean], B = E[mean^2], C = E[var]; R and `back` as of a trunk. `average`
    has the covariance over lags of the channels' average, where they are not independent (pixels)."""

    A: float
    B: float
    C: float
    size: int | None = None
    R: np.ndarray = field(default_factory=lambda: WHITE)
    average: np.ndarray | None = None
    back: float = 1.0


def noise(image_size: int | None) -> Activated:
    """Images of independent N(0, 1) pixels."""
    return Activated(0.0, 0.0, 1.0, image_size)


def pixels_of(images: Tensor) -> Activated:
    """What `images` (N, C, H, W) are: channel means and variances, and correlations over space and over channels.

    Raises: WorkbenchError for images that do not vary.
    """
    x = images.detach().double().cpu()
    mean = x.mean((0, 2, 3))
    centred = x - mean.view(1, -1, 1, 1)
    S, average = _autocovariance(centred), _autocovariance(centred.mean(1, keepdim=True))
    if not S[0, 0] > 0:
        raise WorkbenchError("`images` must vary: every pixel has the same value.")
    A, B = mean.mean().item(), mean.square().mean().item()
    return Activated(A, B, S[0, 0], images.shape[-1], S / S[0, 0], average)


def activate(fn, h: Trunk) -> Activated:
    """Moments of fn(x), x ~ N(mu, V) within a channel, mu ~ N(m, M) over channels; correlations by Hermite's series.

    Raises: WorkbenchError for a function that is not elementwise.
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
    """fn(x) and fn'(x)."""
    leaf = x.detach().requires_grad_()
    try:
        with torch.enable_grad():
            y = fn(leaf)
        few = fn(x[:, :4])
    except RuntimeError:  # it wants other shapes
        y = few = x[:0]
    if y.shape != x.shape or not torch.allclose(y.detach()[:, :4], few):
        raise WorkbenchError("there is a theory for elementwise activations, not for one that mixes channels.")
    slope = torch.autograd.grad(y.sum(), leaf)[0] if y.requires_grad else torch.zeros_like(x)
    return y.detach().numpy(), slope.numpy()


def _activated_correlation(y: np.ndarray, z: np.ndarray, w: np.ndarray, v: np.ndarray, R: np.ndarray, C: float):
    """Of values with correlation R, after the activation: sum_k a_k^2 R^k / C over Hermite coefficients a_k, k >= 1."""
    out, share = np.zeros_like(R), 0.0
    before, here = np.zeros_like(z), np.ones_like(z)  # normalised Hermite polynomials, by their recurrence
    for k in range(1, 25):
        before, here = here, (z * here - math.sqrt(k - 1) * before) / math.sqrt(k)
        power = float(v @ np.square(y @ (w * here))) / C
        out, share = out + power * R**k, share + power
    return out + (1 - share) * (R >= 1)  # what higher orders hold is correlated with nothing but itself


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
    """Through a convolution with freshly drawn weights of variance c / fan-in, from `channels` channels a group to
    `out` (None: as many).

    At a border only some taps meet pixels, so a mean that is constant inside becomes variance over positions.
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
    """shortcut + g * branch, of independent weights."""
    V = shortcut.V + g**2 * branch.V
    if shortcut.R is WHITE and branch.R is WHITE:
        R = WHITE
    else:
        n = max(len(shortcut.R), len(branch.R))
        R = (shortcut.V * _extended(shortcut.R, n) + g**2 * branch.V * _extended(branch.R, n)) / V
    back = shortcut.back + g**2 * branch.back
    return Trunk(shortcut.m + g * branch.m, shortcut.M + g**2 * branch.M, V, branch.size, R, back)


def avg_pool(a: Activated) -> Activated:
    """2x2, stride 2: over white noise the variance within a channel falls to a quarter; its mean stays. Each of four
    pixels gets a quarter of the gradient."""
    smooth = _windowed(a.R, 2)
    size = None if a.size is None else -(-a.size // 2)
    R = _correlation(smooth[::2, ::2] if a.R is not WHITE else None)
    return Activated(a.A, a.B, a.C * smooth[0, 0], size, R, back=a.back / 16)


def max_pool(h: Trunk) -> Trunk:
    """3x3, stride 2: the moments of maxima of a normal field. Windows overlap, so even white noise leaves it alike."""
    size = None if h.size is None else -(-h.size // 2)
    mean, S = _pooled_field(_extended(h.R, max(17, len(h.R))))
    if h.R is WHITE:  # exactly: the largest of nine
        x = np.linspace(-9, 9, 20001)
        cdf = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        density = 9 * cdf**8 * np.exp(-x * x / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
        mean = float((density * x).sum())
        S = S * (float((density * x * x).sum()) - mean**2) / S[0, 0]
    return Trunk(h.m + math.sqrt(h.V) * mean, h.M, h.V * S[0, 0], size, _correlation(S))


def _pooled_field(R: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean, and covariance over lags, of 3x3 maxima of normal fields with the correlation R on a ring of pixels."""
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
    """E[x(p) x(p + lag)] of centred maps (N, C, H, W), over lags up to half a side, both signs of a lag as one."""
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
    """Covariance of averages over k x k windows, from that of single values."""
    weight = {d: (k - abs(d)) / k**2 for d in range(1 - k, k)}
    lag, edge = np.arange(len(S)), len(S) - 1
    out = np.zeros_like(S)
    for d, wd in weight.items():
        for e, we in weight.items():
            rows, columns = np.minimum(np.abs(lag + d), edge), np.minimum(np.abs(lag + e), edge)
            out += wd * we * S[np.ix_(rows, columns)]
    return out


def _correlation(S: np.ndarray | None) -> np.ndarray:
    """S over its value at lag 0; of one pixel only, or of None, that of white noise."""
    return WHITE if S is None or len(S) < 2 or not S[0, 0] > 0 else S / S[0, 0]


def _extended(R: np.ndarray, n: int) -> np.ndarray:
    return np.pad(R, (0, n - len(R)), mode="edge")


def _taps(size: int, kernel_size: int, stride: int) -> tuple[float, float, float]:
    """Over the positions of a square map: mean share of taps on real pixels, mean squared share, mean share that two
    positions have in common."""
    before, after = same_padding(size, kernel_size, stride)
    start = np.arange(0, size + before + after - kernel_size + 1, stride) - before
    tap = start[:, None] + np.arange(kernel_size)
    real = ((tap >= 0) & (tap < size)).astype(float)  # (positions, taps) along one axis; the map is its square
    return real.mean() ** 2, np.square(real.mean(1)).mean() ** 2, (real @ real.T / kernel_size).mean() ** 2


def _normal_grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and weights of the expectation over N(0, 1); a fine grid, because activations have kinks, and without 0,
    where they have them."""
    z = np.linspace(-8, 8, n)
    density = np.exp(-z * z / 2)
    return z, density / density.sum()
