"""The layers of normalizer-free networks.

Source: NFNet paper, section 2. Where the authors' code differs, the code decides: biased variance, eps by max inside
the root, TensorFlow's "SAME" padding, squeeze-excite with a plain ReLU.
Legend: N batch, C channels, H W space. The weight of a convolution is (O, I/groups, k, k).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.models.standardize import standardize


class _SameConv2d(nn.Module):
    """What all convolutions share: shapes, checks, and TF-SAME padding."""

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
                raise WorkbenchError(f"`{name}` must be positive and divisible by `groups` ({groups}), got {channels}.")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise WorkbenchError(f"`kernel_size` must be odd and positive, got {kernel_size}.")
        if stride not in (1, 2):
            raise WorkbenchError(f"`stride` must be 1 or 2, got {stride}.")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.scale = kernel_size, stride, scale
        self.fan_in = in_channels // groups * kernel_size**2  # the paper's N: inputs of one output, per group
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))

    def extra_repr(self) -> str:
        """List the settings for `repr`."""
        shape = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{shape}, groups={self.groups}, scale={self.scale:.6g}"


class ScaledStdConv2d(_SameConv2d):
    """A convolution with a standardised weight: W_hat = gain * (W - mean) / sqrt(N var).

    Mean and variance are those of one output channel, with N weights. Padding is TF-SAME.
    Source: NFNet paper, equation 3; the biased variance and max(N var, eps), eps = 1e-4, are those of
    the authors' code.

    Args:
        in_channels: Channels of the input, a multiple of `groups`.
        out_channels: Channels of the output, a multiple of `groups`.
        kernel_size: Odd side of the kernel, in pixels.
        stride: 1 or 2.
        groups: Groups of channels that are convolved on their own.
        scale: Constant factor of the standardised weight, not of the bias. A factor of the input is the same function,
            so blocks fold gamma / beta of their input in here.

    Attributes:
        weight: (O, I/groups, k, k), standardised at each forward pass.
        gain: (O,), starts at 1.
        bias: (O,), starts at 0.
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
        nn.init.normal_(self.weight, std=self.fan_in**-0.5)  # untruncated: this sets |W|, and so what AGC clips

    def standardized_weight(self) -> Tensor:
        """Return W_hat (O, I/groups, k, k) in the weight's precision.

        A half-precision weight is standardised in float32.
        """
        return standardize(self.weight, self.gain * self.scale, floor=self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with W_hat: (N, I, H, W) -> (N, O, ceil(H/stride), ceil(W/stride))."""
        return same_conv2d(x, self.standardized_weight(), self.bias, self.stride, self.groups)


class PlainConv2d(_SameConv2d):
    """A convolution without standardisation, with TF-SAME padding.

    Args:
        in_channels: Channels of the input, a multiple of `groups`.
        out_channels: Channels of the output, a multiple of `groups`.
        kernel_size: Odd side of the kernel, in pixels.
        stride: 1 or 2.
        groups: Groups of channels that are convolved on their own.
        scale: Constant factor of the weight, not of the bias.
        init_gain: The weights are drawn with variance init_gain / fan-in. 2 is He's.
        truncated: Cut the normal at two sigma without a correction, as the authors' BatchNorm nets do. The variance is
            then 0.774 of the requested one.
        bias: Whether there is a bias, which starts at 0.
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
        """Convolve: (N, I, H, W) -> (N, O, ceil(H/stride), ceil(W/stride))."""
        weight = self.weight if self.scale == 1.0 else self.weight * self.scale
        return same_conv2d(x, weight, self.bias, self.stride, self.groups)


# Variance of a standard normal cut at +-2: 1 - 4 phi(2) / (Phi(2) - Phi(-2)) = 0.7737
TRUNCATED_VARIANCE = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Return (before, after), the TF-SAME padding along one axis.

    The kernel must be odd and the stride 1 or 2. For these it equals the general ceil-and-max formula, and it stays
    small when `size` is symbolic (torch.export).
    """
    after = (kernel_size - 1) // 2
    if stride == 1 or kernel_size == 1:
        return after, after
    return after - 1 + size % 2, after


def same_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, groups: int) -> Tensor:
    """Convolve with TF-SAME padding: (N, C, H, W) -> (N, O, ceil(H/stride), ceil(W/stride))."""
    kernel_size = weight.shape[-1]
    if stride == 1 or kernel_size == 1:
        return F.conv2d(x, weight, bias, stride, kernel_size // 2, groups=groups)
    top, bottom = same_padding(x.shape[-2], kernel_size, stride)
    left, right = same_padding(x.shape[-1], kernel_size, stride)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, groups=groups)


def same_avg_pool2d(x: Tensor) -> Tensor:
    """Average 2x2 windows with stride 2: (N, C, H, W) -> (N, C, ceil(H/2), ceil(W/2)).

    At an odd border the sum is divided by the number of real pixels.
    """
    return F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)


def same_max_pool2d(x: Tensor) -> Tensor:
    """Max-pool 3x3 windows with stride 2: (N, C, H, W) -> (N, C, ceil(H/2), ceil(W/2)).

    The TF-SAME padding is minus infinity, not 0.
    """
    top, bottom = same_padding(x.shape[-2], 3, 2)
    left, right = same_padding(x.shape[-1], 3, 2)
    return F.max_pool2d(F.pad(x, (left, right, top, bottom), value=-math.inf), 3, 2)


class SqueezeExcite(nn.Module):
    """Channel gates in (0, 1) from the pooled map: sigmoid(W2 relu(W1 mean(x))).

    The nonlinearity is a plain, unscaled ReLU (authors' code; the paper names another). The block multiplies by 2.

    Args:
        channels: Channels of the map.
        ratio: Inner width over `channels`.
        hidden: Inner width. Takes precedence over `ratio`.
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
        """Return the gates: (N, C, H, W) -> (N, C, 1, 1)."""
        pooled = x.mean((2, 3))  # (N, C)
        return torch.sigmoid(self.expand(F.relu(self.reduce(pooled))))[:, :, None, None]


class StochasticDepth(nn.Module):
    """Drops the residual branch of a sample with probability `rate` in training.

    Args:
        rate: Probability, at least 0 and below 1.
        rescale: Divide kept branches by 1 - rate, as timm does. The authors do not.
    """

    def __init__(self, rate: float, rescale: bool = False):
        super().__init__()
        if not 0 <= rate < 1:
            raise WorkbenchError(f"`rate` of stochastic depth must be at least 0 and below 1, got {rate}.")
        self.rate, self.rescale = rate, rescale

    def forward(self, x: Tensor) -> Tensor:
        """Set dropped samples to 0: (N, C, H, W) -> (N, C, H, W)."""
        keep = self.kept(x)
        return x if keep is None else x * keep

    def kept(self, x: Tensor) -> Tensor | None:
        """Draw the factor of each sample, (N, 1, 1, 1). None if nothing can be dropped."""
        if not self.training or self.rate == 0:
            return None
        keep = torch.floor(1 - self.rate + torch.rand(x.shape[0], 1, 1, 1, device=x.device))
        if self.rescale:
            keep = keep / (1 - self.rate)
        return keep.to(x.dtype)

    def extra_repr(self) -> str:
        """List the settings for `repr`."""
        return f"rate={self.rate:.4g}"


class Join(StochasticDepth):
    """The end of a block: shortcut + gain * drop(gate * branch).

    The small factors are multiplied first, so there is only one pass over the maps.
    """

    def forward(
        self, shortcut: Tensor, branch: Tensor, gate: Tensor | None = None, gain: float | Tensor | None = None
    ) -> Tensor:
        """Add the branch to the shortcut.

        Args:
            shortcut: (N, C, H, W).
            branch: (N, C, H, W). Signal propagation reports gate * branch.
            gate: (N, C, 1, 1), such as the gates of squeeze-excite.
            gain: A number, or a tensor of one element.

        Returns:
            (N, C, H, W).
        """
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
    """Make the last linear layer: not standardised, weight from N(0, std**2), bias 0."""
    linear = nn.Linear(in_features, num_classes)
    nn.init.normal_(linear.weight, std=std) if std else nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
