"""The gradient noise scale: the batch size beyond which more samples per step help little.

Source: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1::

    B_simple = tr(Sigma) / |G|^2,    G the true gradient, Sigma the covariance of the gradient of one sample

From n batches of b samples, with gradients g_i, their mean g, and d_i = g_i - g::

    tr(Sigma) = b / (n - 1) * sum |d_i|^2,    |G|^2 = |g|^2 - tr(Sigma) / (n b)

These equal the paper's unbiased estimates from the norms at batch sizes b and n b, but avoid its differences of large
numbers.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.probes.shared import checked_loss, left_unchanged, measured_parameters

Batch = tuple[Tensor, Tensor]
Values = TypeVar("Values", float, np.ndarray)


@dataclass(frozen=True)
class NoiseScale:
    """Result of `gradient_noise_scale`.

    `grad_sq` is unbiased, so it can be 0 or negative. Then `noise_scale` is infinite, but the lower end of `interval`
    is still a lower bound.

    Attributes:
        noise_scale: `trace / grad_sq`, samples.
        interval: 95% confidence interval of the noise scale, samples.
        grad_sq: Unbiased estimate of |G|^2.
        trace: Unbiased estimate of tr(Sigma).
        batch: Samples in each batch.
        batches: Number of batches.
    """

    noise_scale: float
    interval: tuple[float, float]
    grad_sq: float
    trace: float
    batch: int
    batches: int

    @property
    def note(self) -> str:
        """Warning about the estimate; empty if it needs none."""
        if self.trace == 0:
            return "all batches have the same gradient, so there is no noise to measure"
        if self.grad_sq <= 0:
            return f"the gradient is lost in the noise of {self.batch * self.batches} samples: use more batches"
        if math.isinf(self.interval[1]):
            return "the gradient is hardly larger than the noise, so the interval has no upper end: use more batches"
        return ""


def gradient_noise_scale(
    model: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor], batches: Iterable[Batch]
) -> NoiseScale:
    """Estimate the gradient noise scale over the parameters that require a gradient.

    The model runs in its current mode, so dropout counts as noise. BatchNorm in training mode makes the samples of a
    batch depend on each other. The result then holds for batches of this size.

    The interval is a jackknife of |G|^2 / tr(Sigma) over the batches, with Student's t and inverted ends. For two
    batches it is (0, inf). It covers the noise of the batches, but not the change of the noise scale during training.

    The jackknife compares every gradient with their mean, so there are two passes. All batches stay in memory, but the
    gradients do not. Needs scipy. Mode, gradients, buffers and random state of the model stay unchanged, even if
    drawing the batches uses random numbers.

    Example::

        gradient_noise_scale(model, F.cross_entropy, itertools.islice(loader, 16))

    Args:
        model: The model, in the mode to measure.
        criterion: `criterion(model(x), y)` is the mean loss of a batch.
        batches: Pairs (x, y), drawn independently. At least two, all of one size.

    Returns:
        The noise scale with its interval.

    Raises:
        WorkbenchError: If there are fewer than two batches, their sizes differ, or a loss is not a finite scalar.
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
    """Compute the noise scale from statistics of n batches.

    Args:
        mean_sq: |g|^2.
        squares: |d_i|^2, (n,).
        inners: d_i . g, (n,).
        batch: Samples in each batch.

    Returns:
        The noise scale with its interval.
    """
    n, total = len(squares), squares.sum()
    trace, grad_sq = _unbiased(mean_sq, total, n, batch)
    if trace == 0:
        noise = 0.0 if grad_sq > 0 else math.nan
        return NoiseScale(noise, (noise, noise), float(grad_sq), 0.0, batch, n)
    interval = (0.0, math.inf)
    if n > 2:
        left = n - 1
        # Without batch i the mean is g - d_i / (n - 1). The squares around that sum to total - n / (n - 1) |d_i|^2.
        mean_sqs = mean_sq - 2 * inners / left + squares / left**2
        traces, grad_sqs = _unbiased(mean_sqs, total - n / left * squares, left, batch)
        if (traces > 0).all():
            interval = _inverted(grad_sq / trace, grad_sqs / traces)
    noise = trace / grad_sq if grad_sq > 0 else math.inf
    return NoiseScale(float(noise), interval, float(grad_sq), float(trace), batch, n)


def _unbiased(mean_sq: Values, total: Values, n: int, batch: int) -> tuple[Values, Values]:
    """Estimate tr(Sigma) and |G|^2 from |g|^2 and the sum of |d_i|^2 over n batches."""
    trace = batch * total / (n - 1)
    return trace, mean_sq - trace / (n * batch)


def _inverted(ratio: float, without: np.ndarray) -> tuple[float, float]:
    """Return the interval of 1 / ratio.

    `without` holds the ratio without each of the batches, (n,). The ratio |G|^2 / tr(Sigma) is nearly normal, because
    tr(Sigma) is known well. Its inverse is not if |G|^2 is near 0.
    """
    from scipy.stats import t

    n = len(without)
    error = math.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    low, high = ratio + error * t.ppf([0.025, 0.975], n - 1)

    def inverse(end: float) -> float:
        return float(1 / end) if end > 0 else math.inf

    return inverse(high), inverse(low)


def _common_size(batches: list[Batch]) -> int:
    if not all(isinstance(b, tuple | list) and len(b) == 2 for b in batches):
        raise WorkbenchError("`batches` must hold pairs (x, y). Cut a single batch into [(x, y), (x, y), ...].")
    sizes = sorted({len(x) for x, _ in batches})
    if len(batches) < 2 or len(sizes) > 1 or sizes == [0]:
        raise WorkbenchError(
            f"the noise scale needs at least two batches of one size, got {len(batches)} of {sizes} samples. "
            "Give more batches, and drop a smaller last one (drop_last=True)."
        )
    return sizes[0]


def _gradients(
    model: nn.Module, criterion: Callable, batches: list[Batch], params: list[nn.Parameter]
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the gradient of each batch, always from the same buffers and random state."""
    with left_unchanged(model), torch.enable_grad():
        for x, y in batches:
            loss = checked_loss(criterion(model(x), y), "Check the weights, x, and the criterion's reduction")
            yield torch.autograd.grad(loss, params, materialize_grads=True)


def _inner(a: list[Tensor], b: list[Tensor]) -> float:
    return sum((x * y).sum().item() for x, y in zip(a, b, strict=True))
