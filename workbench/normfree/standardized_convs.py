"""Convolutions of torch and of anybody, standardised: what `normfree` makes of a network's own.

Source: NFNet paper, equation 3, as in layers.py; here padding, stride, dilation and groups stay as they are. A
transposed convolution has a unit of its own, see there. A residual branch ends in a BranchGain.
"""

from collections.abc import Callable, Iterator
from itertools import product
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from workbench.models.standardize import standardize

FLOOR = 1e-4


class Standardized:
    """Before a class of convolutions: weight W_hat = scale * gain * (W - mean) / (sqrt(N) std) of each filter.

    `weight` and `bias` (O,) are the convolution's, `gain` (O,) is learnt, `scale` a constant: gamma / beta of what it
    reads. Made by `standardized`.
    """

    scale = 1.0

    def standardized_weight(self) -> Tensor:
        """W_hat, of the weight's shape and precision."""
        return self.by_unit(self.weight, lambda units: standardize(units, self.gain * self.scale, floor=FLOOR))

    def by_unit(self, weight: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """`weight` after `fn`, which gets it as (O, ...), one unit a row."""
        return fn(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.standardized_weight(), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale:.6g}"

    def plain(self) -> nn.Module:
        """This module, turned into the convolution that computes the same: weight W_hat, no gain."""
        w_hat = self.standardized_weight().detach()
        self.__class__ = ORIGINAL[type(self)]
        self.weight = nn.Parameter(w_hat, self.weight.requires_grad)
        del self.gain, self.scale
        return self


class StandardizedConv1d(Standardized, nn.Conv1d):
    """(N, C, L) -> (N, O, L')."""


class StandardizedConv2d(Standardized, nn.Conv2d):
    """(N, C, H, W) -> (N, O, H', W')."""


class StandardizedConv3d(Standardized, nn.Conv3d):
    """(N, C, D, H, W) -> (N, O, D', H', W')."""


class _Transposed(Standardized):
    """A unit is what meets in one output value: of the k^2 taps of a filter those that are a stride apart."""

    def by_unit(self, weight: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        out = torch.empty_like(weight)  # (I, O/groups, k, k)
        for phase in self.phases():
            units = weight[phase].unflatten(0, (self.groups, -1)).transpose(1, 2)  # (groups, O/groups, I/groups, ...)
            done = fn(units.flatten(0, 1)).unflatten(0, (self.groups, -1))
            out[phase] = done.transpose(1, 2).flatten(0, 1)
        return out

    def phases(self) -> Iterator[tuple[slice, ...]]:
        """The taps of each unit, as an index into the weight."""
        steps = [s // gcd(s, d) for s, d in zip(self.stride, self.dilation, strict=True)]
        starts = [range(min(step, k)) for step, k in zip(steps, self.kernel_size, strict=True)]
        for start in product(*starts):
            yield (slice(None), slice(None), *(slice(a, None, step) for a, step in zip(start, steps, strict=True)))

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        dims = len(self.kernel_size)
        more = self._output_padding(x, output_size, self.stride, self.padding, self.kernel_size, dims, self.dilation)
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
        w_hat = self.standardized_weight()
        return transposed(x, w_hat, self.bias, self.stride, self.padding, more, self.groups, self.dilation)


class StandardizedConvTranspose1d(_Transposed, nn.ConvTranspose1d):
    """(N, C, L) -> (N, O, L')."""


class StandardizedConvTranspose2d(_Transposed, nn.ConvTranspose2d):
    """(N, C, H, W) -> (N, O, H', W')."""


class StandardizedConvTranspose3d(_Transposed, nn.ConvTranspose3d):
    """(N, C, D, H, W) -> (N, O, D', H', W')."""


class StandardizedCall(Standardized, nn.Module):
    """A convolution of a class of its own: `conv` is called with its weight standardised."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    @property
    def weight(self) -> Tensor:
        return self.conv.weight

    def forward(self, *args, **kwargs) -> Tensor:
        return functional_call(self.conv, {"weight": self.standardized_weight()}, args, kwargs)

    def plain(self) -> nn.Module:
        self.conv.weight = nn.Parameter(self.standardized_weight().detach(), self.weight.requires_grad)
        return self.conv


ORIGINAL = {
    StandardizedConv1d: nn.Conv1d,
    StandardizedConv2d: nn.Conv2d,
    StandardizedConv3d: nn.Conv3d,
    StandardizedConvTranspose1d: nn.ConvTranspose1d,
    StandardizedConvTranspose2d: nn.ConvTranspose2d,
    StandardizedConvTranspose3d: nn.ConvTranspose3d,
}
STANDARDIZED = {original: standardized for standardized, original in ORIGINAL.items()}


class Scale(nn.Module):
    """scale * x, in the place of a norm that a constant must stand for, or whose output is written to in place."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x

    def extra_repr(self) -> str:
        return f"scale={self.scale:.6g}"


class BranchGain(nn.Module):
    """The end of a residual branch: scale * skip_gain * x, with the learnt skip gain (1,) of the block.

    `scale` is alpha over the deviation that the branch is expected to have.
    """

    def __init__(self, scale: float, skip_gain: float, like: Tensor):
        super().__init__()
        self.scale = scale
        self.skip_gain = nn.Parameter(torch.full((1,), float(skip_gain), device=like.device, dtype=like.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.scale * self.skip_gain).to(x.dtype)

    def extra_repr(self) -> str:
        return f"scale={self.scale:.6g}"


class BranchEnd(nn.Module):
    """A module that ends a residual branch, and the gain behind it."""

    def __init__(self, module: nn.Module, gain: BranchGain):
        super().__init__()
        self.module, self.gain = module, gain

    def forward(self, *args, **kwargs) -> Tensor:
        return self.gain(self.module(*args, **kwargs))


def can_be_standardized(conv: nn.Module) -> bool:
    """Whether every unit has more than one weight, and its layout is known."""
    if type(conv) in STANDARDIZED and getattr(conv, "transposed", False):
        probe = STANDARDIZED[type(conv)].phases(conv)
        return min(conv.weight[phase].numel() for phase in probe) > conv.out_channels
    return conv.weight[0].numel() > 1 and not getattr(conv, "transposed", False)


@torch.no_grad()
def standardized(
    conv: nn.Module, gain: nn.Parameter, bias: nn.Parameter, scale: float, generator: torch.Generator
) -> nn.Module:
    """`conv` itself, of the class that standardises, or in a StandardizedCall.

    Its weight is centred and brought to norm 1 in each unit, which changes nothing of the function, and is what AGC
    compares with; units of equal weights are drawn again.
    """
    if type(conv) in STANDARDIZED:
        conv.__class__ = STANDARDIZED[type(conv)]
        made = conv
    else:
        made = StandardizedCall(conv)
    if bias.dtype != conv.weight.dtype:  # BatchNorm keeps float32 in networks of half precision
        bias = nn.Parameter(bias.to(conv.weight.dtype), bias.requires_grad)
    conv.bias, made.gain, made.scale = bias, gain, scale

    def unit_norm(units: Tensor) -> Tensor:
        w = units.float() if units.dtype.itemsize < 4 else units
        w = w.flatten(1) - w.flatten(1).mean(1, keepdim=True)
        equal = w.norm(dim=1) < 1e-12
        if equal.any():
            drawn = torch.randn(w[equal].shape, generator=generator).to(w)
            w[equal] = drawn - drawn.mean(1, keepdim=True)
        return (w / w.norm(dim=1, keepdim=True)).view(units.shape).to(units.dtype)

    conv.weight.copy_(made.by_unit(conv.weight, unit_norm))
    return made
