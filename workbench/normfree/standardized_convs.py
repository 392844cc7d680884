"""Standardised convolutions, which replace those of a network in `normfree`.

Source: NFNet paper, equation 3, as in layers.py. Padding, stride, dilation and groups stay unchanged. Units of
transposed convolutions differ, see `_Transposed`. A residual branch ends in a `BranchGain`.
"""

from collections.abc import Callable, Iterator
from itertools import product
from math import gcd
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from workbench.models.standardize import standardize

if TYPE_CHECKING:  # the mixins use the attributes of a convolution, but are no modules alone
    Base = _ConvNd
else:
    Base = object

FLOOR = 1e-4


class Standardized(Base):
    """A mixin that standardises the weight of a class of convolutions, filter by filter.

    The weight is W_hat = scale * gain * (W - mean) / (sqrt(N) std). `standardized` makes such modules.

    Attributes:
        weight: The weight of the convolution.
        bias: (O,), the bias of the convolution.
        gain: (O,), learnt.
        scale: A constant, gamma / beta of the input.
    """

    gain: nn.Parameter
    scale = 1.0

    def standardized_weight(self) -> Tensor:
        """Return W_hat, of the weight's shape and precision."""
        return self.by_unit(self.weight, lambda units: standardize(units, self.gain * self.scale, floor=FLOOR))

    def by_unit(self, weight: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply `fn` to the weight as (O, ...), one unit per row. Return the weight's shape."""
        return fn(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the standardised weight, see the class for the shapes."""
        return self._conv_forward(x, self.standardized_weight(), self.bias)

    def extra_repr(self) -> str:
        """Show the scale, too."""
        return f"{super().extra_repr()}, scale={self.scale:.6g}"

    def plain(self) -> nn.Module:
        """Turn this module into the ordinary convolution with weight W_hat, which computes the same."""
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
    """A mixin for transposed convolutions.

    A unit is the set of taps that contribute to the same output values. Of the k^2 taps of a filter, these are the taps
    that are a stride apart.
    """

    padding: tuple[int, ...]
    _output_padding: Callable[..., list[int]]

    def by_unit(self, weight: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply `fn` to the weight as (O, ...), with one unit per row, for each phase of the stride."""
        out = torch.empty_like(weight)  # (I, O/groups, k, k)
        for phase in self.phases():
            units = weight[phase].unflatten(0, (self.groups, -1)).transpose(1, 2)  # (groups, O/groups, I/groups, ...)
            done = fn(units.flatten(0, 1)).unflatten(0, (self.groups, -1))
            out[phase] = done.transpose(1, 2).flatten(0, 1)
        return out

    def phases(self) -> Iterator[tuple[slice, ...]]:
        """Yield the taps of each phase of the stride, as an index into the weight."""
        steps = [s // gcd(s, d) for s, d in zip(self.stride, self.dilation, strict=True)]
        starts = [range(min(step, k)) for step, k in zip(steps, self.kernel_size, strict=True)]
        for start in product(*starts):
            yield (slice(None), slice(None), *(slice(a, None, step) for a, step in zip(start, steps, strict=True)))

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve with the standardised weight, see the class for the shapes."""
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
    """A wrapper that calls a convolution of another class with its weight standardised.

    Args:
        conv: A module with a parameter `weight`.
    """

    def __init__(self, conv: nn.Module):
        nn.Module.__init__(self)
        self.conv = conv

    @property
    def weight(self) -> Tensor:
        """The weight of `conv`."""
        return cast(Tensor, self.conv.weight)

    def forward(self, *args, **kwargs) -> Tensor:
        """Call `conv` with the standardised weight. The shapes are those of `conv`."""
        return functional_call(self.conv, {"weight": self.standardized_weight()}, args, kwargs)

    def plain(self) -> nn.Module:
        """Return `conv` with the weight W_hat, which computes the same."""
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
    """A constant factor, scale * x.

    It replaces a norm that must divide by beta, or whose output is changed in place.
    """

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Scale x of any shape."""
        return self.scale * x

    def extra_repr(self) -> str:
        """Show the scale."""
        return f"scale={self.scale:.6g}"


class BranchGain(nn.Module):
    """The end of a residual branch: scale * skip_gain * x.

    Args:
        scale: Alpha over the standard deviation that the branch is expected to have.
        skip_gain: The initial value of the block's learnt skip gain (1,).
        like: A tensor whose device and precision the skip gain gets.
    """

    def __init__(self, scale: float, skip_gain: float, like: Tensor):
        super().__init__()
        self.scale = scale
        self.skip_gain = nn.Parameter(torch.full((1,), float(skip_gain), device=like.device, dtype=like.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Scale x of any shape."""
        return x * (self.scale * self.skip_gain).to(x.dtype)

    def extra_repr(self) -> str:
        """Show the scale."""
        return f"scale={self.scale:.6g}"


class BranchEnd(nn.Module):
    """A module that ends a residual branch, followed by the gain."""

    def __init__(self, module: nn.Module, gain: BranchGain):
        super().__init__()
        self.module, self.gain = module, gain

    def forward(self, *args, **kwargs) -> Tensor:
        """Apply the module, then the gain. The shapes are those of the module."""
        return self.gain(self.module(*args, **kwargs))


def can_be_standardized(conv: nn.Module) -> bool:
    """Return whether every unit has more than one weight, and the layout of the weight is known."""
    weight = cast(Tensor, conv.weight)
    if type(conv) in STANDARDIZED and getattr(conv, "transposed", False):
        phases = STANDARDIZED[type(conv)].phases(conv)
        return min(weight[phase].numel() for phase in phases) > cast(int, conv.out_channels)
    return weight[0].numel() > 1 and not getattr(conv, "transposed", False)


@torch.no_grad()
def standardized(
    conv: nn.Module, gain: nn.Parameter, bias: nn.Parameter, scale: float, generator: torch.Generator
) -> nn.Module:
    """Turn a convolution into a standardised one.

    The weight is centred and scaled to norm 1 in each unit. This does not change the output, and AGC compares gradients
    with this norm. Units of equal weights are drawn again.

    Args:
        conv: The convolution, which is changed in place.
        gain: (O,), the new gain.
        bias: (O,), the new bias.
        scale: The constant gamma / beta of its input.
        generator: The generator for units of equal weights.

    Returns:
        `conv` with a standardised class, or a `StandardizedCall` around it if its class is unknown.
    """
    weight = cast(nn.Parameter, conv.weight)
    if type(conv) in STANDARDIZED:
        conv.__class__ = STANDARDIZED[type(conv)]
        made = cast(Standardized, conv)
    else:
        made = StandardizedCall(conv)
    if bias.dtype != weight.dtype:  # BatchNorm may keep float32 in networks of half precision
        bias = nn.Parameter(bias.to(weight.dtype), bias.requires_grad)
    conv.bias, made.gain, made.scale = bias, gain, scale

    def unit_norm(units: Tensor) -> Tensor:
        w = units.float() if units.dtype.itemsize < 4 else units
        w = w.flatten(1) - w.flatten(1).mean(1, keepdim=True)
        equal = w.norm(dim=1) < 1e-12
        if equal.any():
            drawn = torch.randn(w[equal].shape, generator=generator).to(w)
            w[equal] = drawn - drawn.mean(1, keepdim=True)
        return (w / w.norm(dim=1, keepdim=True)).view(units.shape).to(units.dtype)

    weight.copy_(made.by_unit(weight, unit_norm))
    return made
