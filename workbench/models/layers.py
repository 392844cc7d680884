"""The layers of normalizer-free networks.

Source: NFNet paper, section 2, and the authors' code where the two differ: biased variance, eps by max inside the
root, "SAME" padding as TensorFlow has it, squeeze-excite with a plain ReLU. Legend: N batch, C channels, H W space; a
convolution's weight is (O, I/groups, k, k).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.models.standardize import standardize


class _SameConv2d(nn.Module):
    """What every convolution here shares: shapes, checks, and TF-SAME padding."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        scale: float = 1.0,
    ):
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < 1 or channels % groups:
                raise WorkbenchError(f"`{name}` (={channels}) must be positive and divisible by `groups` (={groups}).")
        if kernel_size < 1 or kernel_size % 2 == 0 or stride not in (1, 2):
            raise WorkbenchError(f"`kernel_size` (={kernel_size}) must be odd and `stride` (={stride}) 1 or 2.")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.scale = kernel_size, stride, scale
        self.fan_in = in_channels // groups * kernel_size**2  # the paper's N: inputs of one output, per group
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))

    def extra_repr(self) -> str:
        shape = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{shape}, groups={self.groups}, scale={self.scale:.6g}"


class ScaledStdConv2d(_SameConv2d):
    """A convolution whose weight is standardised per output channel: W_hat = gain * (W - mean) / sqrt(N var).

    Args: as nn.Conv2d, with TF-SAME padding. `scale` multiplies the standardised weight (not the bias): blocks put
    there the constants of what they feed in, gamma / beta, which is the same function as scaling the input.
    Parameters: weight (O, I/groups, k, k), gain (O,) from 1, bias (O,) from 0.
    Source: NFNet paper, equation 3; authors' code for the biased variance and max(N var, eps), eps = 1e-4.
    """

    eps = 1e-4

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        scale: float = 1.0,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, groups, scale)
        self.gain = nn.Parameter(torch.ones(out_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.normal_(self.weight, std=self.fan_in**-0.5)  # fan-in, untruncated: sets |W|, and so what AGC clips

    def standardized_weight(self) -> Tensor:
        """W_hat (O, I/groups, k, k), in the weight's precision; a half-precision weight is standardised in float32."""
        return standardize(self.weight, self.gain * self.scale, floor=self.eps)

    def forward(self, x: Tensor) -> Tensor:
        return same_conv2d(x, self.standardized_weight(), self.bias, self.stride, self.groups)


class PlainConv2d(_SameConv2d):
    """A convolution without standardisation, weights drawn with variance `init_gain` / fan-in.

    `init_gain` 2 is He's; `truncated` cuts the normal at two sigma without correcting it, as the authors' BatchNorm
    nets do (the variance is then 0.774 of the asked one).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        scale: float = 1.0,
        *,
        init_gain: float = 2.0,
        truncated: bool = False,
        bias: bool = True,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, groups, scale)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        std = math.sqrt(init_gain / self.fan_in)
        if truncated:
            nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        else:
            nn.init.normal_(self.weight, std=std)
        self.init_gain = init_gain * (TRUNCATED_VARIANCE if truncated else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.scale == 1.0 else self.weight * self.scale
        return same_conv2d(x, weight, self.bias, self.stride, self.groups)


# of a standard normal cut at +-2: 1 - 4 phi(2) / (Phi(2) - Phi(-2)) = 0.7737
TRUNCATED_VARIANCE = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """(before, after) of TF-SAME padding along one axis, for odd kernels and stride 1 or 2.

    Equals the general ceil-and-max formula there, and stays small when `size` is symbolic (torch.export).
    """
    after = (kernel_size - 1) // 2
    if stride == 1 or kernel_size == 1:
        return after, after
    return after - 1 + size % 2, after


def same_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, groups: int) -> Tensor:
    """Convolution of x (N, C, H, W) with TF-SAME padding: the output is (N, O, ceil(H/stride), ceil(W/stride))."""
    kernel_size = weight.shape[-1]
    if stride == 1 or kernel_size == 1:
        return F.conv2d(x, weight, bias, stride, kernel_size // 2, groups=groups)
    top, bottom = same_padding(x.shape[-2], kernel_size, stride)
    left, right = same_padding(x.shape[-1], kernel_size, stride)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, groups=groups)


def same_avg_pool2d(x: Tensor) -> Tensor:
    """2x2 average pool of stride 2; at an odd border it divides by the number of real pixels."""
    return F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)


def same_max_pool2d(x: Tensor) -> Tensor:
    """3x3 max pool of stride 2, TF-SAME; the padding is minus infinity, never 0."""
    top, bottom = same_padding(x.shape[-2], 3, 2)
    left, right = same_padding(x.shape[-1], 3, 2)
    return F.max_pool2d(F.pad(x, (left, right, top, bottom), value=-math.inf), 3, 2)


class SqueezeExcite(nn.Module):
    """Channel gates in (0, 1) from the pooled map: sigmoid(W2 relu(W1 mean(x))), x (N, C, H, W) -> gates (N, C, 1, 1).

    The nonlinearity is a plain, unscaled ReLU (authors' code; the paper writes another). The block multiplies by 2.
    `hidden` sets the inner width itself, instead of `ratio` times the channels.
    """

    def __init__(self, channels: int, ratio: float = 0.5, hidden: int | None = None):
        super().__init__()
        hidden = hidden or max(1, int(channels * ratio))
        self.reduce = nn.Linear(channels, hidden)
        self.expand = nn.Linear(hidden, channels)
        for linear in (self.reduce, self.expand):
            std = linear.in_features**-0.5
            nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3))  # (N, C)
        return torch.sigmoid(self.expand(F.relu(self.reduce(pooled))))[:, :, None, None]


class StochasticDepth(nn.Module):
    """Drops the residual branch of a sample with probability `rate` in training.

    The authors do not rescale what is kept; `rescale=True` divides it by 1 - rate, as timm does.
    """

    def __init__(self, rate: float, rescale: bool = False):
        super().__init__()
        if not 0 <= rate < 1:
            raise WorkbenchError(f"the rate of stochastic depth (={rate}) must be at least 0 and below 1.")
        self.rate, self.rescale = rate, rescale

    def forward(self, x: Tensor) -> Tensor:
        keep = self.kept(x)
        return x if keep is None else x * keep

    def kept(self, x: Tensor) -> Tensor | None:
        """The factor of each sample, (N, 1, 1, 1); None where nothing is dropped."""
        if not self.training or self.rate == 0:
            return None
        keep = torch.floor(1 - self.rate + torch.rand(x.shape[0], 1, 1, 1, device=x.device))
        if self.rescale:
            keep = keep / (1 - self.rate)
        return keep.to(x.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}"


class Join(StochasticDepth):
    """The end of a block: shortcut + gain * drop(gate * branch), in one pass over the maps, small factors first.

    Args: shortcut and branch (N, C, H, W); `gate` (N, C, 1, 1), as of squeeze-excite; `gain` one number, or a tensor
    of one. The branch of signal propagation is gate * branch.
    """

    def forward(
        self, shortcut: Tensor, branch: Tensor, gate: Tensor | None = None, gain: float | Tensor | None = None
    ) -> Tensor:
        factor = gain
        for other in (gate, self.kept(branch)):
            if other is not None:
                factor = other if factor is None else factor * other
        if factor is None:
            return shortcut + branch
        if not isinstance(factor, Tensor):
            return torch.add(shortcut, branch, alpha=factor)
        return torch.addcmul(shortcut, branch, factor.to(branch.dtype))


def classifier(in_features: int, num_classes: int, std: float) -> nn.Linear:
    """The last linear layer: not standardised, weight from N(0, std), bias from 0."""
    linear = nn.Linear(in_features, num_classes)
    nn.init.normal_(linear.weight, std=std) if std else nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
