"""Normalizer-free ResNet: every block is h + alpha * skip_gain * f(h / beta).

No layer mixes the images of a batch.
Source: Brock, De and Smith 2021 (the precursor paper) and the authors' code. Read it next to resnet.py: the difference
between the two files is the paper. gamma and 1 / beta are constants. They are folded into the `scale` of the
convolutions that read them.
Legend: h the trunk, a the activated input of a branch, both (N, C, H, W).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workbench.models.activations import Activation, activated_channels, activation_and_gamma
from workbench.models.layers import Join, PlainConv2d, ScaledStdConv2d, SqueezeExcite, same_max_pool2d
from workbench.models.network import Network


class Block(nn.Module):
    """A pre-activation bottleneck: out = shortcut + alpha * skip_gain * drop(residual)."""

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
        standardize: bool,
    ):
        super().__init__()
        self.alpha, self.beta, self.stage = alpha, beta, stage
        self.is_transition = stride > 1 or in_channels != out_channels
        self.act, gamma = activation_and_gamma(activation)
        conv, gamma = (ScaledStdConv2d, gamma) if standardize else (PlainConv2d, 1.0)
        mid = out_channels // 4
        live_in, live_mid = activated_channels(activation, in_channels), activated_channels(activation, mid)
        if self.is_transition:
            self.conv_shortcut = conv(live_in, out_channels, 1, stride, scale=gamma / beta)
        self.conv0 = conv(live_in, mid, 1, scale=gamma / beta)
        self.conv1 = conv(live_mid, mid, 3, stride, scale=gamma)
        self.conv2 = conv(live_mid, out_channels, 1, scale=gamma)
        self.squeeze_excite = SqueezeExcite(out_channels, se_ratio) if se_ratio else None
        self.join = Join(drop_rate)
        self.skip_gain = nn.Parameter(torch.full((1,), float(skip_gain)))  # from 0: the block begins as its shortcut

    def forward(self, h: Tensor) -> Tensor:
        """Run the block: (N, C, H, W) -> (N, out_channels, ceil(H/stride), ceil(W/stride))."""
        a = self.act(h)
        shortcut, branch = self.conv_shortcut(a) if self.is_transition else h, self.branch(a)
        return self.join(shortcut, branch, self.gate(branch), self.alpha * self.skip_gain)

    def branch(self, a: Tensor) -> Tensor:
        """Run the convolutions of the branch: (N, C, H, W) -> (N, out_channels, H', W')."""
        out = self.conv0(a)
        out = self.conv1(self.act(out))
        return self.conv2(self.act(out))

    def gate(self, branch: Tensor) -> Tensor | None:
        """Return the doubled squeeze-excite gates (N, out_channels, 1, 1), if there are any."""
        return None if self.squeeze_excite is None else 2 * self.squeeze_excite(branch)

    def residual(self, h: Tensor) -> Tensor:
        """Return f(h / beta), the branch before stochastic depth, skip gain and alpha."""
        branch = self.branch(self.act(h))
        gate = self.gate(branch)
        return branch if gate is None else gate * branch


class NFResNet(Network):
    """Stem, stages of blocks, activation, pool, dropout, classifier.

    Args:
        depth: Residual blocks per stage.
        widths: Channels of the stages, before `width`.
        width: Multiplier of all channels.
        num_classes: Classes. With 0 the network returns the pooled features.
        in_channels: Channels of the images.
        activation: A name of `ACTIVATIONS`, or an elementwise function.
        alpha: Factor of every branch. Each block adds alpha**2 to the expected variance of the trunk.
        se_ratio: Hidden width of squeeze-excite over its channels. 0: no gates.
        stochastic_depth: Final drop rate. Block i of n drops its branch with probability stochastic_depth * i / n.
        dropout: Drop rate in front of the classifier.
        skip_gain: Start of the learnable factor of every branch. From 0, a block starts as its shortcut.
        stem: Kernel size and stride of the first convolution.
        pool: Whether a max-pool follows the first convolution.
        standardize: False is the ablation without scaled weight standardisation: plain He-initialised convolutions, and
            an unscaled activation.
    """

    def __init__(
        self,
        *,
        depth: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        width: float = 4,
        num_classes: int = 1000,
        in_channels: int = 3,
        activation: str | Activation = "relu",
        alpha: float = 0.2,
        se_ratio: float = 0.0,
        stochastic_depth: float = 0.1,
        dropout: float = 0.0,
        skip_gain: float = 0.0,
        stem: tuple[int, int] = (7, 2),
        pool: bool = True,
        standardize: bool = True,
    ):
        super().__init__()
        self.pool = pool
        stem_channels = int(16 * width)
        conv = ScaledStdConv2d if standardize else PlainConv2d
        self.stem = conv(in_channels, stem_channels, *stem)  # kernel size, stride

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
                        stride=2 if stage > 0 and i == 0 else 1,
                        alpha=alpha,
                        beta=math.sqrt(variance),
                        activation=activation,
                        se_ratio=se_ratio,
                        drop_rate=stochastic_depth * len(self.blocks) / sum(depth),
                        skip_gain=skip_gain,
                        standardize=standardize,
                    )
                )
                variance = (1.0 if i == 0 else variance) + alpha**2  # a stage's first block resets it to 1
                channels = out_channels

        self.act, self.gamma = activation_and_gamma(activation)
        if not standardize:
            self.gamma = 1.0
        self.set_head(activated_channels(activation, channels), num_classes, dropout)

    def forward_stem(self, x: Tensor) -> Tensor:
        """Run the stem: (N, in_channels, H, W) -> (N, C, H', W')."""
        h = self.stem(x)
        return same_max_pool2d(h) if self.pool else h

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the pooled features: (N, in_channels, H, W) -> (N, num_features)."""
        h = self.forward_stages(x)[-1]
        return (self.act(h) * self.gamma).mean((2, 3))  # (N, C)
