"""FixUp ResNet: a competing method, a post-activation ResNet stabilised by initialisation.

Source: Zhang, Dauphin and Ma 2019 (Fixup initialization), as in the authors' code. A scalar bias comes before and after
every convolution, and a scalar scale at the end of the branch. The last convolution of a branch starts from 0. The
others are damped by B^(-1/4), where B is the number of blocks.
Legend: h the trunk, (N, C, H, W).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workbench.models.activations import Activation, elementwise_and_gamma
from workbench.models.layers import Join, PlainConv2d, same_max_pool2d
from workbench.models.network import Network


def _scalar(value: float) -> nn.Parameter:
    return nn.Parameter(torch.full((1,), value))


class Block(nn.Module):
    """A post-activation bottleneck: out = g(shortcut + drop(residual))."""

    alpha, beta, squeeze_excite = 1.0, 1.0, None
    post_activation = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        stage: int,
        num_blocks: int,
        activation: str | Activation,
        drop_rate: float,
    ):
        super().__init__()
        self.stage = stage
        self.is_transition = stride > 1 or in_channels != out_channels
        self.act, _ = elementwise_and_gamma(activation)
        mid = out_channels // 4
        damping = num_blocks**-0.25
        self.conv0 = _conv(in_channels, mid, 1, std=(2 / mid) ** 0.5 * damping)
        self.conv1 = _conv(mid, mid, 3, stride, std=(2 / (9 * mid)) ** 0.5 * damping)
        self.conv2 = _conv(mid, out_channels, 1, std=0.0)
        if self.is_transition:
            self.conv_shortcut = _conv(in_channels, out_channels, 1, stride, std=(2 / out_channels) ** 0.5)
        self.bias1a, self.bias1b, self.bias2a, self.bias2b, self.bias3a, self.bias3b = (_scalar(0.0) for _ in range(6))
        self.scale = _scalar(1.0)
        self.join = Join(drop_rate)

    def forward(self, h: Tensor) -> Tensor:
        """Run the block: (N, C, H, W) -> (N, out_channels, ceil(H/stride), ceil(W/stride))."""
        shortcut = h + self.bias1a
        if self.is_transition:
            shortcut = self.conv_shortcut(shortcut)
        return self.act(self.join(shortcut, self.residual(h)))

    def residual(self, h: Tensor) -> Tensor:
        """Return f(h), the branch before stochastic depth."""
        out = self.conv0(h + self.bias1a)
        out = self.conv1(self.act(out + self.bias1b) + self.bias2a)
        out = self.conv2(self.act(out + self.bias2b) + self.bias3a)
        return out * self.scale + self.bias3b


class FixUpResNet(Network):
    """Stem with its activation, stages of blocks, pool, dropout, classifier (weight from 0).

    Args:
        depth: Residual blocks per stage.
        widths: Channels of the stages, before `width`.
        width: Multiplier of all channels.
        num_classes: Classes. With 0 the network returns the pooled features.
        in_channels: Channels of the images.
        activation: A name of `ACTIVATIONS`, or an elementwise function.
        stochastic_depth: Final drop rate. Block i of n drops its branch with probability stochastic_depth * i / n.
        dropout: Drop rate in front of the classifier.
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
        stem: tuple[int, int] = (7, 2),
        pool: bool = True,
    ):
        super().__init__()
        self.pool = pool
        self.act, _ = elementwise_and_gamma(activation)
        stem_channels = int(16 * width)
        self.stem = PlainConv2d(in_channels, stem_channels, *stem, init_gain=1.0, truncated=True, bias=False)
        self.bias1 = _scalar(0.0)

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
                        num_blocks=sum(depth),
                        activation=activation,
                        drop_rate=stochastic_depth * len(self.blocks) / sum(depth),
                    )
                )
                channels = out_channels

        self.bias2 = _scalar(0.0)
        self.set_head(channels, num_classes, dropout)

    def forward_stem(self, x: Tensor) -> Tensor:
        """Run the stem: (N, in_channels, H, W) -> (N, C, H', W')."""
        h = self.act(self.stem(x) + self.bias1)
        return same_max_pool2d(h) if self.pool else h

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the pooled features: (N, in_channels, H, W) -> (N, num_features)."""
        return self.forward_stages(x)[-1].mean((2, 3))  # (N, C)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits: (N, in_channels, H, W) -> (N, num_classes)."""
        return self.linear(self.dropout(self.forward_features(x)) + self.bias2)


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, *, std: float) -> PlainConv2d:
    conv = PlainConv2d(in_channels, out_channels, kernel_size, stride, bias=False)
    nn.init.normal_(conv.weight, std=std)
    conv.init_gain = std**2 * conv.fan_in
    return conv
