"""timm's own normalizer-free nets: other functions than the authors', kept because public weights exist for them.

Read off timm 1.0.31. Where they part from nfnet.py, nf_resnet.py and nf_regnet.py: symmetric padding; eps 1e-5 added
to the variance instead of the floor under N var; gamma in every convolution, the stem's included, so none after the
last activation; widths rounded to multiples of 8; no skip gain (the branch's last convolution starts with gain 0);
an averaging shortcut in the ResNet, too; kept branches rescaled by stochastic depth; gates by squeeze-excite or by ECA.
Legend: h the trunk, a the activated input of a branch; (N, C, H, W) throughout.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.models.activations import Activation, activation_and_gamma
from workbench.models.layers import Join, ScaledStdConv2d, SqueezeExcite, same_avg_pool2d
from workbench.models.network import Network
from workbench.models.standardize import standardize


class TimmConv2d(ScaledStdConv2d):
    """gain * (W - mean) / sqrt(N (var + eps)), eps 1e-5; padded by (k - 1) / 2 on every side."""

    eps = 1e-5

    def standardized_weight(self) -> Tensor:
        return standardize(self.weight, self.gain * self.scale, floor=0.0, added=self.eps)

    def forward(self, x: Tensor) -> Tensor:
        padding = self.kernel_size // 2
        return F.conv2d(x, self.standardized_weight(), self.bias, self.stride, padding, groups=self.groups)


class EfficientChannelAttention(nn.Module):
    """Gates in (0, 1) by a convolution along the channels of the pooled map, x (N, C, H, W) -> gates (N, C, 1, 1).

    Source: Wang et al. 2020 (ECA-Net); the kernel grows with the logarithm of the channels.
    """

    def __init__(self, channels: int):
        super().__init__()
        reach = int((math.log2(channels) + 1) / 2)
        kernel_size = max(reach if reach % 2 else reach + 1, 3)
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3))[:, None]  # (N, 1, C)
        return torch.sigmoid(self.conv(pooled))[:, 0, :, None, None]


class Block(nn.Module):
    """out = shortcut + alpha * drop(residual); `attention_inside` puts the gate before the last activation."""

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
        self.act, gamma = activation_and_gamma(activation)
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
        a = self.act(h)
        branch = self.branch(a)
        return self.join(self.shortcut(h, a), branch, self.gate(branch), self.alpha)

    def shortcut(self, h: Tensor, a: Tensor) -> Tensor:
        if not self.is_transition:
            return h
        return self.conv_shortcut(same_avg_pool2d(a) if self.stride == 2 else a)

    def branch(self, a: Tensor) -> Tensor:
        out = self.conv0(a)
        out = self.conv1(self.act(out))
        if self.conv1b is not None:
            out = self.conv1b(self.act(out))
        if self.attention_inside and self.attention is not None:
            out = 2 * self.attention(out) * out
        return self.conv2(self.act(out))

    @property
    def attention(self) -> nn.Module | None:
        return self.squeeze_excite or self.channel_attention

    def gate(self, branch: Tensor) -> Tensor | None:
        return None if self.attention is None or self.attention_inside else 2 * self.attention(branch)

    def residual(self, h: Tensor) -> Tensor:
        """f(h / beta): the branch before stochastic depth and alpha."""
        branch = self.branch(self.act(h))
        gate = self.gate(branch)
        return branch if gate is None else gate * branch


class TimmNet(Network):
    """timm's NormFreeNet: stem, stages, optional final convolution, activation, pool, dropout, classifier.

    Args: `stem` the channels of its convolutions: four of 3x3, or one of `stem_kernel`, and then `pool` for a max-pool
    behind it; `mid_ratio` the branch's width over the block's output, or over its input with `regnet`; `se_ratio` is
    None for gates by ECA, 0 for none; `final_channels` of the last 1x1 convolution, 0 for none.
    """

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
        self.act, gamma = activation_and_gamma(activation)
        strides = (2, 1, 1, 2) if len(stem) == 4 else (2,)
        channels = (in_channels, *stem)
        self.stem = nn.ModuleList(
            TimmConv2d(channels[i], channels[i + 1], stem_kernel, stride, scale=gamma)
            for i, stride in enumerate(strides)
        )

        self.blocks = nn.ModuleList()
        channels, variance = stem[-1], 1.0  # the expected variance of the trunk, carried through the network
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
                variance = (1.0 if i == 0 else variance) + alpha**2  # a stage's first block starts the count again
                channels = out_channels

        self.final_conv = TimmConv2d(channels, final_channels, 1, scale=gamma) if final_channels else nn.Identity()
        self.set_head(final_channels or channels, num_classes, dropout)

    def forward_stem(self, x: Tensor) -> Tensor:
        h = self.stem[0](x)
        for conv in self.stem[1:]:
            h = conv(self.act(h))
        return F.max_pool2d(h, 3, 2, padding=1) if self.pool else h

    def forward_features(self, x: Tensor) -> Tensor:
        return self.act(self.final_conv(self.forward_stages(x)[-1])).mean((2, 3))  # (N, C)


def _round8(channels: float) -> int:
    """The nearest multiple of 8, but never less than 90 % of what was asked."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
