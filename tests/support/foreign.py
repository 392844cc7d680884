"""Small networks in the style of other libraries. Our tools must accept them without knowing them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Post-activation with the addition in place, as in torchvision."""

    def __init__(self, channels: int, out: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


class SmallResNet(nn.Module):
    """Stem, four blocks in two stages, pooling and classifier. A branch depends on the shape, so tracers fail."""

    def __init__(self, in_channels: int = 3, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 16))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2), BasicBlock(32, 32))
        self.fc = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        if h.shape[-1] > 64:
            h = F.avg_pool2d(h, 2)
        return self.fc(self.layer2(self.layer1(h)).mean((2, 3)))


class Gated(nn.Module):
    """A pre-activation block with squeeze-excite. Its gates must not be mistaken for a trunk."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(F.silu(x))
        return x + torch.sigmoid(self.gate(out.mean((2, 3), keepdim=True))) * out


class TransformerBlock(nn.Module):
    """Attention and a perceptron, each added to the tokens (N, T, C)."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 32), nn.GELU(), nn.Linear(32, channels))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.out(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0])
        return x + self.mlp(self.norm2(x))


class SmallViT(nn.Module):
    """Patches with positions, and two blocks."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 16, 16))
        self.blocks = nn.Sequential(TransformerBlock(), TransformerBlock())
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(tokens + self.position).mean(1))


class SqueezeExcite(nn.Module):
    """Gates from the pooled map by 1x1 convolutions, as in torchvision and timm."""

    def __init__(self, channels: int):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1 and squeeze-excite, post-activation, with functional activations."""

    def __init__(self, channels: int, out: int, stride: int = 1):
        super().__init__()
        mid = out // 2
        self.conv1, self.bn1 = nn.Conv2d(channels, mid, 1, bias=False), nn.BatchNorm2d(mid)
        self.conv2, self.bn2 = nn.Conv2d(mid, mid, 3, stride, 1, groups=4, bias=False), nn.BatchNorm2d(mid)
        self.conv3, self.bn3 = nn.Conv2d(mid, out, 1, bias=False), nn.BatchNorm2d(out)
        nn.init.zeros_(self.bn3.weight)
        self.se, self.drop_path = SqueezeExcite(out), nn.Dropout(0.1)
        self.downsample = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out = F.silu(self.bn1(self.conv1(x)), inplace=True)
        out = F.silu(self.bn2(self.conv2(out)))
        out = self.drop_path(self.se(self.bn3(self.conv3(out))))
        return F.silu(out + (x if self.downsample is None else self.downsample(x)))


class SqueezeNet(nn.Sequential):
    """Bottlenecks with squeeze-excite in two stages."""

    def __init__(self):
        super().__init__(
            nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.SiLU(inplace=True)),
            nn.Sequential(Bottleneck(32, 64), Bottleneck(64, 64)),
            nn.Sequential(Bottleneck(64, 128, 2), Bottleneck(128, 128)),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)),
        )


class PreActivationBlock(nn.Module):
    """Twice BatchNorm, activation, convolution. The activation may run in place, because it follows BatchNorm."""

    def __init__(self, channels: int, activation: nn.Module):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, 1, 1)
        self.act = activation

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.act(self.bn1(x)))
        return x + self.conv2(self.act(self.bn2(out)))


class PreActivationNet(nn.Module):
    """A stem without norm, blocks on one trunk, and a last norm and activation."""

    def __init__(self, blocks: int = 3, channels: int = 32, activation: nn.Module | None = None):
        super().__init__()
        activation = nn.ReLU(inplace=True) if activation is None else activation
        self.conv = nn.Conv2d(3, channels, 3, 1, 1)
        self.blocks = nn.ModuleList(PreActivationBlock(channels, activation) for _ in range(blocks))
        self.bn, self.act, self.head = nn.BatchNorm2d(channels), activation, nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        for block in self.blocks:
            h = block(h)
        return self.head(self.act(self.bn(h)).mean((2, 3)))


def double_conv(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(channels, out, 3, 1, 1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)),
        *(nn.Conv2d(out, out, 3, 1, 1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)),
    )


class UNet(nn.Module):
    """A U-Net with one level.

    `up` is "transposed" (a transposed convolution), "normalised" (the same with BatchNorm) or "upsampled". `skip` is
    "concatenated", or anything else for an addition.
    """

    def __init__(self, channels: int = 16, up: str = "transposed", skip: str = "concatenated"):
        super().__init__()
        self.skip = skip
        self.down1, self.down2 = double_conv(1, channels), double_conv(channels, 2 * channels)
        self.up = {
            "transposed": nn.ConvTranspose2d(2 * channels, channels, 2, 2),
            "normalised": nn.Sequential(
                nn.ConvTranspose2d(2 * channels, channels, 4, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
            ),
            "upsampled": nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2 * channels, channels, 1)),
        }[up]
        self.mix = double_conv(2 * channels if skip == "concatenated" else channels, channels)
        self.out = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        across = self.down1(x)
        h = self.up(self.down2(F.max_pool2d(across, 2)))
        return self.out(self.mix(torch.cat([across, h], 1) if self.skip == "concatenated" else across + h))
