"""timm's own normalizer-free nets, for which public weights exist.

They compute other functions than the authors' nets. Taken from timm 1.0.31.
Differences from nfnet.py, nf_resnet.py and nf_regnet.py:

- Padding is symmetric.
- eps 1e-5 is added to the variance, instead of the floor under N var.
- gamma is in every convolution, the stem's included, and not after the last activation.
- Widths are rounded to multiples of 8.
- There is no skip gain. The last convolution of a branch starts with gain 0.
- The shortcut averages in the ResNet, too.
- Stochastic depth rescales kept branches.
- Gates are squeeze-excite or ECA.

Legend: h the trunk, a the activated input of a branch, both (N, C, H, W).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.models.activations import Activation, elementwise_and_gamma
from workbench.models.layers import Join, ScaledStdConv2d, SqueezeExcite, same_avg_pool2d
from workbench.models.network import Network
from workbench.models.standardize import standardize


class TimmConv2d(ScaledStdConv2d):
    """A convolution with the weight gain * (W - mean) / sqrt(N (var + eps)), eps 1e-5.

    It is padded by (k - 1) / 2 on every side.
    """

    eps = 1e-5

    def standardized_weight(self) -> Tensor:
        """Return W_hat (O, I/groups, k, k) in the weight's precision.

        A half-precision weight is standardised in float32.
        """
        return standardize(self.weight, self.gain * self.scale, floor=0.0, added=self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with W_hat: (N, I, H, W) -> (N, O, ceil(H/stride), ceil(W/stride))."""
        padding = self.kernel_size // 2
        return F.conv2d(x, self.standardized_weight(), self.bias, self.stride, padding, groups=self.groups)


class EfficientChannelAttention(nn.Module):
    """Channel gates in (0, 1) by a convolution along the channels of the pooled map.

    Source: Wang et al. 2020 (ECA-Net). The kernel grows with the logarithm of the channels.
    """

    def __init__(self, channels: int):
        super().__init__()
        reach = int((math.log2(channels) + 1) / 2)
        kernel_size = max(reach if reach % 2 else reach + 1, 3)
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gates: (N, C, H, W) -> (N, C, 1, 1)."""
        pooled = x.mean((2, 3))[:, None]  # (N, 1, C)
        return torch.sigmoid(self.conv(pooled))[:, 0, :, None, None]


class Block(nn.Module):
    """A block: out = shortcut + alpha * drop(residual).

    `attention_inside` puts the gate before the last activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        mid: int,
        *,
        stride: int,
        stage: int,
        groups: int,
        alpha: float,
        beta: float,
        activation: str | Activation,
        attention: str | None,
        hidden: int,
        attention_inside: bool,
        two_convs: bool,
        drop_rate: float,
    ):
        super().__init__()
        self.alpha, self.beta, self.stage, self.stride = alpha, beta, stage, stride
        self.is_transition = stride > 1 or in_channels != out_channels
        self.attention_inside = attention_inside
        self.act, gamma = elementwise_and_gamma(activation)
        if self.is_transition:
            self.conv_shortcut = TimmConv2d(in_channels, out_channels, 1, scale=gamma / beta)
        self.conv0 = TimmConv2d(in_channels, mid, 1, scale=gamma / beta)
        self.conv1 = TimmConv2d(mid, mid, 3, stride, groups, scale=gamma)
        self.conv1b = TimmConv2d(mid, mid, 3, 1, groups, scale=gamma) if two_convs else None
        self.conv2 = TimmConv2d(mid, out_channels, 1, scale=gamma)
        nn.init.zeros_(self.conv2.gain)  # the block begins as its shortcut
        gated = mid if attention_inside else out_channels
        self.squeeze_excite = SqueezeExcite(gated, hidden=hidden) if attention == "se" else None
        self.channel_attention = EfficientChannelAttention(gated) if attention == "eca" else None
        self.join = Join(drop_rate, rescale=True)

    def forward(self, h: Tensor) -> Tensor:
        """Run the block: (N, C, H, W) -> (N, out_channels, ceil(H/stride), ceil(W/stride))."""
        a = self.act(h)
        branch = self.branch(a)
        return self.join(self.shortcut(h, a), branch, self.gate(branch), self.alpha)

    def shortcut(self, h: Tensor, a: Tensor) -> Tensor:
        """Return the trunk, projected in a transition block: (N, out_channels, H', W')."""
        if not self.is_transition:
            return h
        return self.conv_shortcut(same_avg_pool2d(a) if self.stride == 2 else a)

    def branch(self, a: Tensor) -> Tensor:
        """Run the convolutions of the branch: (N, C, H, W) -> (N, out_channels, H', W')."""
        out = self.conv0(a)
        out = self.conv1(self.act(out))
        if self.conv1b is not None:
            out = self.conv1b(self.act(out))
        if self.attention_inside and self.attention is not None:
            out = 2 * self.attention(out) * out
        return self.conv2(self.act(out))

    @property
    def attention(self) -> nn.Module | None:
        """The module that computes the gates, if any."""
        return self.squeeze_excite or self.channel_attention

    def gate(self, branch: Tensor) -> Tensor | None:
        """Return twice the gates, (N, out_channels, 1, 1), or None if none come after the branch."""
        return None if self.attention is None or self.attention_inside else 2 * self.attention(branch)

    def residual(self, h: Tensor) -> Tensor:
        """Return f(h / beta), the branch before stochastic depth and alpha."""
        branch = self.branch(self.act(h))
        gate = self.gate(branch)
        return branch if gate is None else gate * branch


class TimmNet(Network):
    """timm's NormFreeNet.

    Stem, stages, optional final convolution, activation, pool, dropout, classifier.

    Args:
        depth: Residual blocks per stage.
        widths: Channels of the stages.
        stem: Channels of the stem's convolutions, of which there are one or four.
        stem_kernel: Kernel size of the stem's convolutions.
        pool: Whether a max-pool follows the stem.
        mid_ratio: Width of a branch over the block's output, or over its input with `regnet`.
        group_size: Channels per group of the 3x3 convolutions. None: one group.
        regnet: Build a RegNet: every stage strides, and gates come inside the branch.
        two_convs: Whether a branch has two 3x3 convolutions, or one.
        final_channels: Channels of the last 1x1 convolution. 0: no such convolution.
        num_classes: Classes. With 0 the network returns the pooled features.
        in_channels: Channels of the images.
        activation: A name of `ACTIVATIONS`, or an elementwise function.
        alpha: Factor of every branch. Each block adds alpha**2 to the expected variance of the trunk.
        se_ratio: Hidden width of squeeze-excite over its channels. 0: no gates. None: gates by ECA.
        stochastic_depth: Final drop rate. Block i of n drops its branch with probability
            stochastic_depth * i / (n - 1).
        dropout: Drop rate in front of the classifier.
    """

    stem: nn.ModuleList

    def __init__(
        self,
        *,
        depth: Sequence[int],
        widths: Sequence[int],
        stem: Sequence[int],
        stem_kernel: int = 3,
        pool: bool = False,
        mid_ratio: float,
        group_size: int | None,
        regnet: bool = False,
        two_convs: bool = True,
        final_channels: int,
        num_classes: int = 1000,
        in_channels: int = 3,
        activation: str | Activation = "silu",
        alpha: float = 0.2,
        se_ratio: float | None = 0.5,
        stochastic_depth: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.pool = pool
        self.act, gamma = elementwise_and_gamma(activation)
        strides = (2, 1, 1, 2) if len(stem) == 4 else (2,)
        channels = (in_channels, *stem)
        self.stem = nn.ModuleList(
            TimmConv2d(channels[i], channels[i + 1], stem_kernel, stride, scale=gamma)
            for i, stride in enumerate(strides)
        )

        self.blocks = nn.ModuleList()
        channels, variance = stem[-1], 1.0  # the trunk's expected variance
        for stage, (blocks, out_channels) in enumerate(zip(depth, widths, strict=True)):
            for i in range(blocks):
                first = not self.blocks
                mid = _round8(channels * (1.0 if first else mid_ratio) if regnet else out_channels * mid_ratio)
                groups = mid // group_size if group_size else 1
                gated = mid if regnet else out_channels
                self.blocks.append(
                    Block(
                        channels,
                        out_channels,
                        mid,
                        stage=stage,
                        stride=2 if i == 0 and (stage > 0 or regnet) else 1,
                        groups=groups,
                        alpha=alpha,
                        beta=math.sqrt(variance),
                        activation=activation,
                        attention="eca" if se_ratio is None else "se" if se_ratio else None,
                        hidden=max(8, int(gated * (se_ratio or 0) + 4) // 8 * 8),
                        attention_inside=regnet,
                        two_convs=two_convs,
                        drop_rate=stochastic_depth * len(self.blocks) / max(1, sum(depth) - 1),
                    )
                )
                variance = (1.0 if i == 0 else variance) + alpha**2  # a stage's first block resets it to 1
                channels = out_channels

        self.final_conv = TimmConv2d(channels, final_channels, 1, scale=gamma) if final_channels else nn.Identity()
        self.set_head(final_channels or channels, num_classes, dropout)

    def forward_stem(self, x: Tensor) -> Tensor:
        """Run the stem: (N, in_channels, H, W) -> (N, C, H', W')."""
        h = self.stem[0](x)
        for conv in self.stem[1:]:
            h = conv(self.act(h))
        return F.max_pool2d(h, 3, 2, padding=1) if self.pool else h

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the pooled features: (N, in_channels, H, W) -> (N, num_features)."""
        return self.act(self.final_conv(self.forward_stages(x)[-1])).mean((2, 3))  # (N, C)


def _round8(channels: float) -> int:
    """Round to the nearest multiple of 8, but never below 90 % of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
