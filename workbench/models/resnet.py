"""Pre-activation ResNet with BatchNorm or GroupNorm: the baseline.

It has the skeleton of NF-ResNet.
Source: He et al. 2016 (identity mappings) as in the authors' code, "V2". Read it next to nf_resnet.py: the difference
between the two files is the paper. No alpha, beta, gamma or skip gain, but a normalisation before each activation.
BatchNorm is torch's: eps 1e-5 and decay 0.9 as in the authors' code, the running variance unbiased and from 1.
GroupNorm comes with weight standardisation, as in Qiao et al. 2019 and BiT: groups of 16 channels (Wu and He 2018).
Legend: h the trunk, a the activated input of a branch, both (N, C, H, W).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from workbench.models.activations import Activation, activated_channels, activation_and_gamma
from workbench.models.layers import Join, PlainConv2d, ScaledStdConv2d, SqueezeExcite, same_max_pool2d
from workbench.models.network import Network

GROUP = 16  # channels per group; a narrower layer is one group


def normalization(norm: str, channels: int) -> nn.Module:
    """Make the layer in front of an activation: BatchNorm for "batch", GroupNorm for "group"."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(math.gcd(channels, max(1, channels // GROUP)), channels)


class Block(nn.Module):
    """A pre-activation bottleneck: out = shortcut + drop(residual)."""

    alpha, beta = 1.0, 1.0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        stage: int,
        is_transition: bool,
        activation: str | Activation,
        se_ratio: float,
        drop_rate: float,
        norm: str,
        conv: Callable[..., nn.Module],
    ):
        super().__init__()
        self.stage, self.is_transition = stage, is_transition
        self.act, _ = activation_and_gamma(activation)
        mid = out_channels // 4
        live_in, live_mid = activated_channels(activation, in_channels), activated_channels(activation, mid)
        self.norm0 = normalization(norm, in_channels)
        if is_transition:
            self.conv_shortcut = conv(live_in, out_channels, 1, stride)
        self.conv0 = conv(live_in, mid, 1)
        self.norm1 = normalization(norm, mid)
        self.conv1 = conv(live_mid, mid, 3, stride)
        self.norm2 = normalization(norm, mid)
        self.conv2 = conv(live_mid, out_channels, 1)
        self.squeeze_excite = SqueezeExcite(out_channels, se_ratio) if se_ratio else None
        self.join = Join(drop_rate)

    def forward(self, h: Tensor) -> Tensor:
        """Run the block: (N, C, H, W) -> (N, out_channels, ceil(H/stride), ceil(W/stride))."""
        a = self.act(self.norm0(h))
        shortcut, branch = self.conv_shortcut(a) if self.is_transition else h, self.branch(a)
        return self.join(shortcut, branch, self.gate(branch))

    def branch(self, a: Tensor) -> Tensor:
        """Run the convolutions of the branch: (N, C, H, W) -> (N, out_channels, H', W')."""
        out = self.conv0(a)
        out = self.conv1(self.act(self.norm1(out)))
        return self.conv2(self.act(self.norm2(out)))

    def gate(self, branch: Tensor) -> Tensor | None:
        """Return the squeeze-excite gates (N, out_channels, 1, 1), if there are any."""
        return None if self.squeeze_excite is None else self.squeeze_excite(branch)

    def residual(self, h: Tensor) -> Tensor:
        """Return f(h), the branch before stochastic depth."""
        branch = self.branch(self.act(self.norm0(h)))
        gate = self.gate(branch)
        return branch if gate is None else gate * branch


class ResNet(Network):
    """Stem, stages of blocks, norm, activation, pool, dropout, classifier (weight from 0).

    Args:
        depth: Residual blocks per stage.
        widths: Channels of the stages, before `width`.
        width: Multiplier of all channels.
        num_classes: Classes. With 0 the network returns the pooled features.
        in_channels: Channels of the images.
        activation: A name of `ACTIVATIONS`, or an elementwise function.
        se_ratio: Hidden width of squeeze-excite over its channels. 0: no gates.
        stochastic_depth: Final drop rate. Block i of n drops its branch with probability stochastic_depth * i / n.
        dropout: Drop rate in front of the classifier.
        stem: Kernel size and stride of the first convolution.
        pool: Whether a max-pool follows the first convolution.
        norm: "batch", or "group", which comes with standardised weights.
        he_init: Draw the convolutions of a BatchNorm net as He et al. do (the textbook's signal propagation), instead
            of from the truncated 1 / fan-in normal of the authors' code.
    """

    norm = "batch"
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
        se_ratio: float = 0.0,
        stochastic_depth: float = 0.0,
        dropout: float = 0.0,
        stem: tuple[int, int] = (7, 2),
        pool: bool = True,
        norm: str = "batch",
        he_init: bool = False,
    ):
        super().__init__()
        self.pool, self.norm = pool, norm
        stem_channels = int(16 * width)
        plain = partial(PlainConv2d, init_gain=2.0 if he_init else 1.0, truncated=not he_init, bias=False)
        conv = plain if norm == "batch" else ScaledStdConv2d
        self.stem = conv(in_channels, stem_channels, *stem)  # kernel size, stride

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
                        is_transition=i == 0,
                        activation=activation,
                        se_ratio=se_ratio,
                        drop_rate=stochastic_depth * len(self.blocks) / sum(depth),
                        norm=norm,
                        conv=conv,
                    )
                )
                channels = out_channels

        self.final_norm = normalization(norm, channels)
        self.act, _ = activation_and_gamma(activation)
        self.set_head(activated_channels(activation, channels), num_classes, dropout)

    def forward_stem(self, x: Tensor) -> Tensor:
        """Run the stem: (N, in_channels, H, W) -> (N, C, H', W')."""
        h = self.stem(x)
        return same_max_pool2d(h) if self.pool else h

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the pooled features: (N, in_channels, H, W) -> (N, num_features)."""
        h = self.forward_stages(x)[-1]
        return self.act(self.final_norm(h)).mean((2, 3))  # (N, C)
