"""The gradient noise scale: the batch size beyond which more samples a step help little.

Source: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1:

    B_simple = tr(Sigma) / |G|^2,    G the true gradient, Sigma the covariance of the gradient of one sample

From n batches of b samples, with gradients g_i, their mean g, and d_i = g_i - g:

    tr(Sigma) = b / (n - 1) * sum |d_i|^2,    |G|^2 = |g|^2 - tr(Sigma) / (n b)

These are the paper's unbiased estimates from the norms at batch sizes b and n b, without its differences of large
numbers.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.probes.shared import checked_loss, left_unchanged, measured_parameters

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class NoiseScale:
    """What `gradient_noise_scale` found. `grad_sq` and `trace` are unbiased, so the estimate of |G|^2 may fall to 0 or
    below: then `noise_scale` is infinite, and the lower end of `interval` still says how large it is at least."""

    noise_scale: float  # trace / grad_sq, in samples
    interval: tuple[float, float]  # 95 %, in samples
    grad_sq: float  # |G|^2
    trace: float  # tr(Sigma)
    batch: int  # samples in each batch
    batches: int

    @property
    def note(self) -> str:
        """What to know before quoting the number; empty where there is nothing."""
        if self.trace == 0:
            return "all batches have one gradient: there is no noise to measure"
        if self.grad_sq <= 0:
            return f"no gradient stands out of the noise of {self.batch * self.batches} samples: take more batches"
        if math.isinf(self.interval[1]):
            return "the interval has no upper end, the gradient hardly stands out of the noise: take more batches"
        return ""


def gradient_noise_scale(
    model: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor], batches: Iterable[Batch]
) -> NoiseScale:
    """The noise scale over the parameters that need a gradient.

        gradient_noise_scale(model, F.cross_entropy, itertools.islice(loader, 16))

    Args: `criterion(model(x), y)` is the mean loss of a batch; `batches` of (x, y), at least two, of one size, drawn
    independently. The model runs in the mode it is in: dropout counts as noise, and with BatchNorm in training mode,
    where the samples of a batch are not independent, the result is that of batches of this size.
    Interval: jackknife of |G|^2 / tr(Sigma), one batch left out, with Student's t, its ends inverted; (0, inf) for two
    batches. It sees the noise of the batches, not that the noise scale changes as training goes on.
    Cost: two passes over the batches, which are kept, for the jackknife compares every gradient with their mean; the
    gradients are not kept. Needs scipy.
    The model is left as found: mode, gradients, buffers and random state, also what drawing the batches takes of it.
    Raises: WorkbenchError for fewer than two batches, for batches of several sizes, and for a loss that is not a finite
    scalar.
    """
    params = measured_parameters(model, "gradient noise")
    with left_unchanged(model):
        batches = list(batches)
    batch = _common_size(batches)
    mean = [torch.zeros_like(p, dtype=torch.float64) for p in params]
    for grads in _gradients(model, criterion, batches, params):
        for m, g in zip(mean, grads, strict=True):
            m += g.double() / len(batches)
    rows = []
    for grads in _gradients(model, criterion, batches, params):
        d = [g - m for g, m in zip(grads, mean, strict=True)]
        rows.append((_inner(d, d), _inner(d, mean)))
    squares, inners = np.array(rows).T
    return noise_scale_of(_inner(mean, mean), squares, inners, batch)


def noise_scale_of(mean_sq: float, squares: np.ndarray, inners: np.ndarray, batch: int) -> NoiseScale:
    """The noise scale from |g|^2, |d_i|^2 (n,) and d_i . g (n,), of n batches of `batch` samples."""
    n, total = len(squares), squares.sum()
    trace, grad_sq = _unbiased(mean_sq, total, n, batch)
    if trace == 0:
        noise = 0.0 if grad_sq > 0 else math.nan
        return NoiseScale(noise, (noise, noise), float(grad_sq), 0.0, batch, n)
    interval = (0.0, math.inf)
    if n > 2:
        left = n - 1
        # without batch i the mean is g - d_i / (n - 1), and the squares around it sum to total - n / (n - 1) |d_i|^2
        mean_sqs = mean_sq - 2 * inners / left + squares / left**2
        traces, grad_sqs = _unbiased(mean_sqs, total - n / left * squares, left, batch)
        if (traces > 0).all():
            interval = _inverted(grad_sq / trace, grad_sqs / traces)
    noise = trace / grad_sq if grad_sq > 0 else math.inf
    return NoiseScale(float(noise), interval, float(grad_sq), float(trace), batch, n)


def _unbiased(mean_sq: np.ndarray, total: np.ndarray, n: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """tr(Sigma) and |G|^2, from |g|^2 and the sum of |d_i|^2 over n batches."""
    trace = batch * total / (n - 1)
    return trace, mean_sq - trace / (n * batch)


def _inverted(ratio: float, without: np.ndarray) -> tuple[float, float]:
    """The interval of 1 / ratio, from `ratio` and from what it is `without` each of the batches (n,).

    |G|^2 / tr(Sigma) is nearly normal, as tr(Sigma) is known well; its inverse is not where |G|^2 comes near 0.
    """
    from scipy.stats import t

    n = len(without)
    error = math.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    low, high = ratio + error * t.ppf([0.025, 0.975], n - 1)
    return tuple(float(1 / end) if end > 0 else math.inf for end in (high, low))


def _common_size(batches: list[Batch]) -> int:
    if not all(isinstance(b, tuple | list) and len(b) == 2 for b in batches):
        raise WorkbenchError("`batches` must hold pairs (x, y): for a single batch, cut it into [(x, y), (x, y), ...].")
    sizes = sorted({len(x) for x, _ in batches})
    if len(batches) < 2 or len(sizes) > 1 or sizes == [0]:
        raise WorkbenchError(
            f"the noise scale needs two or more batches of one size, but got {len(batches)} of {sizes} samples: "
            "give more, and leave a smaller last one out (drop_last=True)."
        )
    return sizes[0]


def _gradients(
    model: nn.Module, criterion: Callable, batches: list[Batch], params: list[nn.Parameter]
) -> Iterator[tuple[Tensor, ...]]:
    """The gradient of each batch; the same in each pass, which starts from the same buffers and random state."""
    with left_unchanged(model), torch.enable_grad():
        for x, y in batches:
            loss = checked_loss(criterion(model(x), y), "look at the weights, at x, and at the criterion's reduction")
            yield torch.autograd.grad(loss, params, materialize_grads=True)


def _inner(a: list[Tensor], b: list[Tensor]) -> float:
    return sum((x * y).sum().item() for x, y in zip(a, b, strict=True))
