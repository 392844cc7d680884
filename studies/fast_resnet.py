"""The BatchNorm net of the race: a shallow, wide ResNet of eight convolutions.

It is for small images and keeps a GPU busy. Source: the ResNet-9 of David Page, "How to train your ResNet", 2018. Each
convolution has an activation behind it, except the last one of a residual branch. A branch can therefore also subtract
from the trunk, as in all ResNets of this library.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm(in_channels: int, out_channels: int) -> nn.Sequential:
    """Make a 3x3 convolution with BatchNorm."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels))


class Residual(nn.Module):
    """A residual block h + f(h), where f has two convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv0, self.conv1 = conv_norm(channels, channels), conv_norm(channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return h + self.conv1(F.relu(self.conv0(h)))


class FastResNet(nn.Module):
    """A ResNet of four stages.

    Each stage has a quarter of the positions of the stage before, and twice its channels. The second and the fourth
    stage have a residual block.
    """

    def __init__(self, num_classes: int, in_channels: int, width: int):
        super().__init__()
        self.stem = conv_norm(in_channels, width)
        self.conv1, self.block1 = conv_norm(width, 2 * width), Residual(2 * width)
        self.conv2 = conv_norm(2 * width, 4 * width)
        self.conv3, self.block3 = conv_norm(4 * width, 8 * width), Residual(8 * width)
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        h = F.relu(self.stem(x))
        h = self.block1(F.max_pool2d(F.relu(self.conv1(h)), 2))
        h = F.max_pool2d(F.relu(self.conv2(h)), 2)
        h = self.block3(F.max_pool2d(F.relu(self.conv3(h)), 2))
        return self.linear(torch.amax(F.relu(h), (2, 3)))


def build(num_classes: int = 10, in_channels: int = 3, width: int = 64) -> nn.Module:
    """Build the network. `width` is the number of channels of the stem."""
    return FastResNet(num_classes, in_channels, width)
