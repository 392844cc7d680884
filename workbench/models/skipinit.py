"""SkipInit ResNet: a competing method, a plain ResNet with one learnable scalar per branch.

The scalars start from 0, which makes the network trainable.
Source: De and Smith 2020 (batch normalization biases residual blocks towards the identity), as in the authors' code.
Compared with nf_resnet.py: no weight standardisation, no alpha, beta or gamma.
Legend: h the trunk, a the activated input of a branch, both (N, C, H, W).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workbench.models.activations import Activation, activated_channels, activation_and_gamma
from workbench.models.layers import Join, PlainConv2d, same_max_pool2d
from workbench.models.network import Network

INIT = {"init_gain": 1.0, "truncated": True}  # the default of the authors' framework


class Block(nn.Module):
    """A pre-activation bottleneck: out = shortcut + skip_gain * drop(residual)."""

    alpha, beta, squeeze_excite = 1.0, 1.0, None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        stage: int,
        activation: str | Activation,
        drop_rate: float,
        skip_gain: float,
    ):
        super().__init__()
        self.stage = stage
        self.is_transition = stride > 1 or in_channels != out_channels
        self.act, _ = activation_and_gamma(activation)
        mid = out_channels // 4
        live_in, live_mid = activated_channels(activation, in_channels), activated_channels(activation, mid)
        if self.is_transition:
            self.conv_shortcut = PlainConv2d(live_in, out_channels, 1, stride, **INIT)
        self.conv0 = PlainConv2d(live_in, mid, 1, **INIT)
        self.conv1 = PlainConv2d(live_mid, mid, 3, stride, **INIT)
        self.conv2 = PlainConv2d(live_mid, out_channels, 1, **INIT)
        self.join = Join(drop_rate)
        self.skip_gain = nn.Parameter(torch.full((1,), float(skip_gain)))  # from 0: the block begins as its shortcut

    def forward(self, h: Tensor) -> Tensor:
        """Run the block: (N, C, H, W) -> (N, out_channels, ceil(H/stride), ceil(W/stride))."""
        a = self.act(h)
        shortcut = self.conv_shortcut(a) if self.is_transition else h
        return self.join(shortcut, self.branch(a), gain=self.skip_gain)

    def branch(self, a: Tensor) -> Tensor:
        """Run the convolutions of the branch: (N, C, H, W) -> (N, out_channels, H', W')."""
        out = self.conv0(a)
        out = self.conv1(self.act(out))
        return self.conv2(self.act(out))

    def residual(self, h: Tensor) -> Tensor:
        """Return f(h), the branch before stochastic depth and skip gain."""
        return self.branch(self.act(h))


class SkipInitResNet(Network):
    """Stem, stages of blocks, activation, pool, dropout, classifier (weight from 0).

    Args:
        depth: Residual blocks per stage.
        widths: Channels of the stages, before `width`.
        width: Multiplier of all channels.
        num_classes: Classes. With 0 the network returns the pooled features.
        in_channels: Channels of the images.
        activation: A name of `ACTIVATIONS`, or an elementwise function.
        stochastic_depth: Final drop rate. Block i of n drops its branch with probability stochastic_depth * i / n.
        dropout: Drop rate in front of the classifier.
        skip_gain: Start of the learnable factor of every branch. From 0, a block starts as its shortcut.
        stem: Kernel size and stride of the first convolution.
        pool: Whether a max-pool follows the first convolution.
    """

    classifier_std = 0.0

    def __init__(
        self,
        *,
        depth: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        width: float = 4,
        num_classes: int = 1000,
        in_channels: int = 3,
        activation: str | Activation = "relu",
        stochastic_depth: float = 0.1,
        dropout: float = 0.0,
        skip_gain: float = 0.0,
        stem: tuple[int, int] = (7, 2),
        pool: bool = True,
    ):
        super().__init__()
        self.pool = pool
        stem_channels = int(16 * width)
        self.stem = PlainConv2d(in_channels, stem_channels, *stem, bias=False, **INIT)  # kernel size, stride

        self.blocks = nn.ModuleList()
        channels = stem_channels
        for stage, (blocks, base) in enumerate(zip(depth, widths, strict=True)):
            for i in range(blocks):
                out_channels = int(base * width)
                self.blocks.append(
                    Block(
                        channels,
                        out_channels,
                        stage=stage,
                        stride=2 if stage > 0 and i == 0 else 1,
                        activation=activation,
                        drop_rate=stochastic_depth * len(self.blocks) / sum(depth),
                        skip_gain=skip_gain,
                    )
                )
                channels = out_channels

        self.act, _ = activation_and_gamma(activation)
        self.set_head(activated_channels(activation, channels), num_classes, dropout)

    def forward_stem(self, x: Tensor) -> Tensor:
        """Run the stem: (N, in_channels, H, W) -> (N, C, H', W')."""
        h = self.stem(x)
        return same_max_pool2d(h) if self.pool else h

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the pooled features: (N, in_channels, H, W) -> (N, num_features)."""
        return self.act(self.forward_stages(x)[-1]).mean((2, 3))  # (N, C)
