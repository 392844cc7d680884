"""NF-RegNet: the normalizer-free counterpart of EfficientNets, B0 to B8.

Source: Brock, De and Smith 2021 (the precursor paper), and the authors' code. Compared with nfnet.py:

- A branch has one grouped 3x3 convolution, with narrow groups.
- The width of a branch follows from the block's *input*.
- Squeeze-excite comes in the middle of the branch.
- Every stage strides.

Legend: h the trunk, a the activated input of a branch, both (N, C, H, W).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workbench.models.activations import Activation, activated_channels, activation_and_gamma
from workbench.models.layers import Join, ScaledStdConv2d, SqueezeExcite, same_avg_pool2d
from workbench.models.network import Network


class Block(nn.Module):
    """A block: out = shortcut + alpha * skip_gain * drop(residual).

    Squeeze-excite comes before the last activation.
    """

    attention_inside = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        stage: int,
        expansion: float,
        alpha: float,
        beta: float,
        activation: str | Activation,
        se_ratio: float,
        drop_rate: float,
        skip_gain: float,
        group_size: int,
    ):
        super().__init__()
        self.alpha, self.beta, self.stage, self.stride = alpha, beta, stage, stride
        self.is_transition = stride > 1 or in_channels != out_channels
        self.act, gamma = activation_and_gamma(activation)
        groups = max(1, int(in_channels * expansion) // group_size)
        mid = groups * group_size
        live_in, live_mid = activated_channels(activation, in_channels), activated_channels(activation, mid)
        if self.is_transition:
            self.conv_shortcut = ScaledStdConv2d(live_in, out_channels, 1, scale=gamma / beta)
        self.conv0 = ScaledStdConv2d(live_in, mid, 1, scale=gamma / beta)
        self.conv1 = ScaledStdConv2d(live_mid, mid, 3, stride, groups, scale=gamma)
        self.squeeze_excite = SqueezeExcite(mid, se_ratio) if se_ratio else None
        self.conv2 = ScaledStdConv2d(live_mid, out_channels, 1, scale=gamma)
        self.join = Join(drop_rate)
        self.skip_gain = nn.Parameter(torch.full((1,), float(skip_gain)))  # from 0: the block begins as its shortcut

    def forward(self, h: Tensor) -> Tensor:
        """Run the block: (N, C, H, W) -> (N, out_channels, ceil(H/stride), ceil(W/stride))."""
        a = self.act(h)
        return self.join(self.shortcut(h, a), self.branch(a), gain=self.alpha * self.skip_gain)

    def shortcut(self, h: Tensor, a: Tensor) -> Tensor:
        """Return the trunk, projected in a transition block: (N, out_channels, H', W')."""
        if not self.is_transition:
            return h
        return self.conv_shortcut(same_avg_pool2d(a) if self.stride == 2 else a)

    def branch(self, a: Tensor) -> Tensor:
        """Run the convolutions of the branch: (N, C, H, W) -> (N, out_channels, H', W')."""
        out = self.conv0(a)
        out = self.conv1(self.act(out))
        if self.squeeze_excite is not None:
            out = 2 * self.squeeze_excite(out) * out
        return self.conv2(self.act(out))

    def residual(self, h: Tensor) -> Tensor:
        """Return f(h / beta), the branch before stochastic depth, skip gain and alpha."""
        return self.branch(self.act(h))


class NFRegNet(Network):
    """The normalizer-free RegNet of the precursor paper.

    Stem of one strided 3x3 convolution, four strided stages, final 1x1 convolution, activation, pool, dropout,
    classifier (weight from 0).

    Args:
        widths: Channels of the stages, before `width`.
        depth: Residual blocks per stage.
        width: Multiplier of all channels.
        num_classes: Classes. With 0 the network returns the pooled features.
        in_channels: Channels of the images.
        activation: A name of `ACTIVATIONS`, or an elementwise function.
        alpha: Factor of every branch. Each block adds alpha**2 to the expected variance of the trunk.
        se_ratio: Hidden width of squeeze-excite over its channels. 0: no gates.
        stochastic_depth: Final drop rate. Block i of n drops its branch with probability stochastic_depth * i / n.
        dropout: Drop rate in front of the classifier.
        skip_gain: Start of the learnable factor of every branch. From 0, a block starts as its shortcut.
        expansion: Width of a branch over the block's input. In the very first block it is 1.
        group_size: Channels per group of the 3x3 convolutions.
    """

    pool = False
    classifier_std = 0.0

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depth: Sequence[int],
        width: float = 0.75,
        num_classes: int = 1000,
        in_channels: int = 3,
        activation: str | Activation = "silu",
        alpha: float = 0.2,
        se_ratio: float = 0.5,
        stochastic_depth: float = 0.1,
        dropout: float = 0.2,
        skip_gain: float = 0.0,
        expansion: float = 2.25,
        group_size: int = 8,
    ):
        super().__init__()
        self.act, self.gamma = activation_and_gamma(activation)
        stem_channels = int(widths[0] * width)
        self.stem = ScaledStdConv2d(in_channels, stem_channels, 3, stride=2)

        self.blocks = nn.ModuleList()
        channels, variance = stem_channels, 1.0  # the trunk's expected variance
        for stage, (blocks, base) in enumerate(zip(depth, widths, strict=True)):
            for i in range(blocks):
                out_channels = int(base * width)
                self.blocks.append(
                    Block(
                        channels,
                        out_channels,
                        stage=stage,
                        stride=2 if i == 0 else 1,
                        expansion=expansion if len(self.blocks) else 1.0,
                        alpha=alpha,
                        beta=math.sqrt(variance),
                        activation=activation,
                        se_ratio=se_ratio,
                        drop_rate=stochastic_depth * len(self.blocks) / sum(depth),
                        skip_gain=skip_gain,
                        group_size=group_size,
                    )
                )
                variance = (1.0 if i == 0 else variance) + alpha**2  # a stage's first block resets it to 1
                channels = out_channels

        final_channels = 1280 * channels // 440  # in proportion to EfficientNet's head
        self.final_conv = ScaledStdConv2d(channels, final_channels, 1)
        self.set_head(activated_channels(activation, final_channels), num_classes, dropout)

    def forward_stem(self, x: Tensor) -> Tensor:
        """Run the stem: (N, in_channels, H, W) -> (N, C, H', W')."""
        return self.stem(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the pooled features: (N, in_channels, H, W) -> (N, num_features)."""
        h = self.final_conv(self.forward_stages(x)[-1])
        return (self.act(h) * self.gamma).mean((2, 3))  # (N, C)
