"""NFNet: the normalizer-free network of the paper's title, F0 to F7, and one for 32 px.

Source: NFNet paper, section 4 and appendix, and the authors' code. A block is h + alpha * skip_gain * f(h / beta) with
two grouped 3x3 convolutions and squeeze-excite. The shortcut of a strided block averages before its 1x1 convolution.
gamma and 1 / beta are constants. They are folded into the `scale` of the convolutions that read them.
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

    The width of the branch follows from the block's output.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        stage: int,
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
        self.alpha, self.beta, self.stage, self.stride = alpha, beta, stage, stride
        self.is_transition = stride > 1 or in_channels != out_channels
        self.act, gamma = activation_and_gamma(activation)
        groups = max(1, out_channels // 2 // group_size)
        mid = groups * group_size
        live_in, live_mid = activated_channels(activation, in_channels), activated_channels(activation, mid)
        if self.is_transition:
            self.conv_shortcut = ScaledStdConv2d(live_in, out_channels, 1, scale=gamma / beta)
        self.conv0 = ScaledStdConv2d(live_in, mid, 1, scale=gamma / beta)
        self.conv1 = ScaledStdConv2d(live_mid, mid, 3, stride, groups, scale=gamma)
        self.conv1b = ScaledStdConv2d(live_mid, mid, 3, 1, groups, scale=gamma) if two_convs else None
        self.conv2 = ScaledStdConv2d(live_mid, out_channels, 1, scale=gamma)
        self.squeeze_excite = SqueezeExcite(out_channels, se_ratio) if se_ratio else None
        self.join = Join(drop_rate)
        self.skip_gain = nn.Parameter(torch.full((1,), float(skip_gain)))  # from 0: the block begins as its shortcut

    def forward(self, h: Tensor) -> Tensor:
        """Run the block: (N, C, H, W) -> (N, out_channels, ceil(H/stride), ceil(W/stride))."""
        a = self.act(h)
        branch = self.branch(a)
        return self.join(self.shortcut(h, a), branch, self.gate(branch), self.alpha * self.skip_gain)

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
        return self.conv2(self.act(out))

    def gate(self, branch: Tensor) -> Tensor | None:
        """Return the doubled squeeze-excite gates (N, out_channels, 1, 1), if there are any."""
        return None if self.squeeze_excite is None else 2 * self.squeeze_excite(branch)

    def residual(self, h: Tensor) -> Tensor:
        """Return f(h / beta), the branch before stochastic depth, skip gain and alpha."""
        branch = self.branch(self.act(h))
        gate = self.gate(branch)
        return branch if gate is None else gate * branch


class NFNet(Network):
    """The normalizer-free network of the NFNet paper.

    Stem of four 3x3 convolutions, four stages, final 1x1 convolution, activation, pool, dropout, classifier.

    Args:
        widths: Channels of the stages, before `width`.
        depth: Residual blocks per stage.
        width: Multiplier of `widths`.
        num_classes: Classes. With 0 the network returns the pooled features.
        in_channels: Channels of the images.
        activation: A name of `ACTIVATIONS`, or an elementwise function.
        alpha: Factor of every branch. Each block adds alpha**2 to the expected variance of the trunk.
        se_ratio: Hidden width of squeeze-excite over its channels. 0: no gates.
        stochastic_depth: Final drop rate. Block i of n drops its branch with probability stochastic_depth * i / n.
        dropout: Drop rate in front of the classifier.
        skip_gain: Start of the learnable factor of every branch. From 0, a block starts as its shortcut.
        two_convs: Whether a branch has two 3x3 convolutions, or one.
        group_size: Channels per group of the 3x3 convolutions.
        stem: Channels of the stem's convolutions except the last, which has widths[0] // 2.
        stem_strides: Strides of the stem's convolutions.
    """

    stem: nn.ModuleList

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depth: Sequence[int],
        width: float = 1.0,
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
        stem_out = (*stem, widths[0] // 2)
        stem_in = (in_channels, *(activated_channels(activation, channels) for channels in stem))
        self.stem = nn.ModuleList(
            ScaledStdConv2d(stem_in[i], stem_out[i], 3, stride, scale=self.gamma if i else 1.0)
            for i, stride in enumerate(stem_strides)
        )

        self.blocks = nn.ModuleList()
        channels, variance = stem_out[-1], 1.0  # the trunk's expected variance
        for stage, (blocks, base) in enumerate(zip(depth, widths, strict=True)):
            for i in range(blocks):
                out_channels = int(base * width)
                self.blocks.append(
                    Block(
                        channels,
                        out_channels,
                        stage=stage,
                        stride=2 if stage > 0 and i == 0 else 1,
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
                variance = (1.0 if i == 0 else variance) + alpha**2  # a stage's first block resets it to 1
                channels = out_channels

        self.final_conv = ScaledStdConv2d(channels, 2 * channels, 1)
        self.set_head(activated_channels(activation, 2 * channels), num_classes, dropout)

    def forward_stem(self, x: Tensor) -> Tensor:
        """Run the stem: (N, in_channels, H, W) -> (N, C, H', W')."""
        h = self.stem[0](x)
        for conv in self.stem[1:]:
            h = conv(self.act(h))
        return h

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the pooled features: (N, in_channels, H, W) -> (N, num_features)."""
        h = self.final_conv(self.forward_stages(x)[-1])
        return (self.act(h) * self.gamma).mean((2, 3))  # (N, C)
