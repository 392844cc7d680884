"""NFNet: the normalizer-free network of the paper's title, F0 to F7, and a small one for 32 px images.

Source: NFNet paper, section 4 and appendix, and the authors' code. A block is h + alpha * skip_gain * f(h / beta)
with two grouped 3x3 convolutions and squeeze-excite; the shortcut of a strided block averages before its 1x1
convolution. gamma and 1 / beta are constants, so they live in the `scale` of the convolutions that read them.
Legend: h the trunk, a the activated input of a branch; (N, C, H, W) throughout.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workbench.models.activations import Activation, activation_and_gamma
from workbench.models.layers import ScaledStdConv2d, SqueezeExcite, StochasticDepth, classifier, same_avg_pool2d


class Block(nn.Module):
    """out = shortcut + alpha * skip_gain * drop(residual), the residual's width counted from the block's output."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        stage: int,
        is_transition: bool,
        alpha: float,
        beta: float,
        activation: str | Activation,
        se_ratio: float,
        drop_rate: float,
        skip_gain: float,
        two_convs: bool,
        group_size: int,
    ):
        super().__init__()
        self.alpha, self.beta, self.stage, self.is_transition, self.stride = alpha, beta, stage, is_transition, stride
        self.act, gamma = activation_and_gamma(activation)
        groups = max(1, out_channels // 2 // group_size)
        mid = groups * group_size
        if is_transition:
            self.conv_shortcut = ScaledStdConv2d(in_channels, out_channels, 1, scale=gamma / beta)
        self.conv0 = ScaledStdConv2d(in_channels, mid, 1, scale=gamma / beta)
        self.conv1 = ScaledStdConv2d(mid, mid, 3, stride, groups, scale=gamma)
        self.conv1b = ScaledStdConv2d(mid, mid, 3, 1, groups, scale=gamma) if two_convs else None
        self.conv2 = ScaledStdConv2d(mid, out_channels, 1, scale=gamma)
        self.squeeze_excite = SqueezeExcite(out_channels, se_ratio) if se_ratio else None
        self.drop = StochasticDepth(drop_rate)
        self.skip_gain = nn.Parameter(torch.full((1,), skip_gain))  # from 0: the block begins as its shortcut

    def forward(self, h: Tensor) -> Tensor:
        a = self.act(h)
        return self.shortcut(h, a) + self.alpha * self.skip_gain * self.drop(self.branch(a))

    def shortcut(self, h: Tensor, a: Tensor) -> Tensor:
        if not self.is_transition:
            return h
        return self.conv_shortcut(same_avg_pool2d(a) if self.stride == 2 else a)

    def branch(self, a: Tensor) -> Tensor:
        out = self.conv0(a)
        out = self.conv1(self.act(out))
        if self.conv1b is not None:
            out = self.conv1b(self.act(out))
        out = self.conv2(self.act(out))
        return out if self.squeeze_excite is None else 2 * self.squeeze_excite(out) * out

    def residual(self, h: Tensor) -> Tensor:
        """f(h / beta): the branch before stochastic depth, skip gain and alpha."""
        return self.branch(self.act(h))


class NFNet(nn.Module):
    """Stem of four 3x3 convolutions, four stages, final 1x1 convolution, activation, pool, dropout, classifier.

    Args: `width` channels and `depth` blocks per stage; `stem` the channels of its first three convolutions (the
    fourth has half the first stage's width) and `stem_strides` their strides; `group_size` channels per group of the
    3x3 convolutions.
    """

    norm = "none"

    def __init__(
        self,
        *,
        width: Sequence[int],
        depth: Sequence[int],
        num_classes: int = 1000,
        in_channels: int = 3,
        activation: str | Activation = "gelu",
        alpha: float = 0.2,
        se_ratio: float = 0.5,
        stochastic_depth: float = 0.25,
        dropout: float = 0.2,
        skip_gain: float = 0.0,
        two_convs: bool = True,
        group_size: int = 128,
        stem: Sequence[int] = (16, 32, 64),
        stem_strides: Sequence[int] = (2, 1, 1, 2),
    ):
        super().__init__()
        self.act, self.gamma = activation_and_gamma(activation)
        stem_channels = (in_channels, *stem, width[0] // 2)
        self.stem = nn.ModuleList(
            ScaledStdConv2d(stem_channels[i], stem_channels[i + 1], 3, stride, scale=self.gamma if i else 1.0)
            for i, stride in enumerate(stem_strides)
        )

        self.blocks = nn.ModuleList()
        channels, variance = stem_channels[-1], 1.0  # the expected variance of the trunk, carried through the network
        for stage, (blocks, out_channels) in enumerate(zip(depth, width, strict=True)):
            for i in range(blocks):
                self.blocks.append(
                    Block(
                        channels,
                        out_channels,
                        stage=stage,
                        stride=2 if stage > 0 and i == 0 else 1,
                        is_transition=i == 0,
                        alpha=alpha,
                        beta=math.sqrt(variance),
                        activation=activation,
                        se_ratio=se_ratio,
                        drop_rate=stochastic_depth * len(self.blocks) / sum(depth),
                        skip_gain=skip_gain,
                        two_convs=two_convs,
                        group_size=group_size,
                    )
                )
                variance = (1.0 if i == 0 else variance) + alpha**2  # a transition block starts the count again
                channels = out_channels

        self.final_conv = ScaledStdConv2d(channels, 2 * channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.linear = classifier(2 * channels, num_classes, std=0.01)

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The trunk after each stage, strides 4, 8, 16, 32 with the default stem."""
        h = self.stem[0](x)
        for conv in self.stem[1:]:
            h = conv(self.act(h))
        maps = []
        for i, block in enumerate(self.blocks):
            h = block(h)
            if i + 1 == len(self.blocks) or self.blocks[i + 1].stage != block.stage:
                maps.append(h)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        h = self.final_conv(self.forward_stages(x)[-1])
        return (self.act(h) * self.gamma).mean((2, 3))  # (N, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(self.forward_features(x)))
