"""Shadows: samples of the values that the channels of a map have at initialisation.

Source: the NFNet precursor paper, section 4. It takes pixels and the outputs of convolutions as N(0, 1) in every
channel. Gamma and beta are 1 over the standard deviation of later maps. This module carries the same idea through a
network whose code is unknown. As the network runs, each operation on maps also runs on their shadows.

A shadow is (ROWS, VALUES). Each row holds the values of one channel over samples and positions, and the rows are evenly
spaced over the channels. Like the authors, shadows ignore pooling windows, interpolation and padding. Neighbouring
pixels of images are alike.
"""

import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from workbench.models.additions import PRODUCTS, Addition, Additions

aten = torch.ops.aten
ROWS, VALUES = 64, 1024
UNTAGGED = {"hardswish", "hardswish_", "_prelu_kernel", "_to_copy"}  # pointwise operations without torch's tag
DIMS = {"mean": torch.mean, "sum": torch.sum, "amax": torch.amax}  # reductions over given dimensions
POOLS = re.compile("(_?adaptive_)?(avg|max)_pool[123]d(_with_indices)?")


def _normal_values() -> Tensor:
    """Return VALUES quantiles of N(0, 1), scaled to variance 1."""
    z = math.sqrt(2) * torch.erfinv((torch.arange(VALUES).double() + 0.5) / VALUES * 2 - 1)
    return (z / z.std(correction=0)).float()


NORMAL = _normal_values()
PLACE = torch.arange(ROWS) * (math.sqrt(5) - 1) / 2 % 1  # place of a row within its part, even for any layout


def spread(shadow: Tensor) -> float:
    """Return the variance within a channel, averaged over channels."""
    return shadow.double().var(1, correction=0).mean().item()


def is_constant(shadow: Tensor) -> bool:
    """Return whether no channel varies, as in a map that was pooled to one position."""
    return spread(shadow) <= 1e-9 * shadow.double().square().mean().item()


def normalised(shadow: Tensor, dim: int | None = None) -> Tensor:
    """Return the shadow after a norm: mean 0 and variance 1, unless it was constant.

    Args:
        shadow: (ROWS, VALUES).
        dim: 1 for a norm over each channel of a sample. None for a norm over the whole sample.

    Returns:
        (ROWS, VALUES).
    """
    var, mean = torch.var_mean(shadow, dim, correction=0, keepdim=True)
    return (shadow - mean) * var.clamp_min(1e-12).rsqrt()


def per_row(values: Tensor) -> Tensor:
    """Pick from one value per channel (C,) those of the rows, (ROWS, 1)."""
    index = (torch.arange(ROWS) * 2 + 1) * len(values) // (2 * ROWS)
    return values.detach().float().cpu()[index][:, None]


class Shadows(Additions):
    """A context in which every tensor that is made from the inputs gets a shadow.

    Args:
        inputs: The inputs of the network.

    Attributes:
        shadows: {tensor: its shadow}.
        noise: The tensors that are random draws, such as masks of dropout.
    """

    def __init__(self, inputs: Sequence[Tensor]):
        super().__init__(inputs, self.before_addition, self.after_addition)
        self.generator = torch.Generator().manual_seed(0)
        self.shadows = WeakIdKeyDictionary({t: self.fresh() for t in inputs})
        self.noise = WeakIdKeyDictionary()

    def before_addition(self, addition: Addition) -> None:
        """Do nothing before a possible block end. Subclasses may."""

    def after_addition(self, out: Tensor) -> None:
        """Do nothing after a possible block end. Subclasses may."""

    def fresh(self) -> Tensor:
        """Return a shadow of N(0, 1) in every channel, independent of all earlier shadows."""
        return NORMAL[torch.rand(ROWS, VALUES, generator=self.generator).argsort(1)]

    def run(self, func, args: tuple, kwargs: dict):
        """Run one operation on maps and on their shadows."""
        out = func(*args, **kwargs)
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(out)
        known = [t for t in inputs if t in self.shadows]
        name = func.overloadpacket.__name__
        if name.endswith("_like") or name.startswith("new_"):
            return out
        if known:
            for tensor, shadow in zip(outputs, self.shadows_of(func, name, args, kwargs, known), strict=False):
                self.shadows[tensor] = shadow.expand(ROWS, VALUES)
        elif torch.Tag.nondeterministic_seeded in func.tags or any(t in self.noise for t in inputs):
            self.noise.update({t: True for t in outputs})
        return out

    def shadows_of(self, func, name: str, args: tuple, kwargs: dict, known: list[Tensor]) -> list[Tensor]:
        """Return the shadows of the outputs of an operation, in order.

        Args:
            func: The operation.
            name: Its name.
            args: Its arguments.
            kwargs: Its named arguments.
            known: The arguments that have a shadow, at least one.
        """
        source = self.shadows[known[0]]
        if any(t in self.noise for t in tensors_in((args, kwargs))):
            return [source]
        try:
            return self._by_rule(func, name, args, kwargs, known, source)
        except (RuntimeError, TypeError, ValueError, IndexError):  # no rule fits this operation
            return [source]

    def _by_rule(self, func, name: str, args: tuple, kwargs: dict, known: list[Tensor], source: Tensor) -> list[Tensor]:
        if func in PRODUCTS:
            return [self._product(func, args, source)]
        if torch.Tag.pointwise in func.tags or name in UNTAGGED:
            return [self._literally(func, args, kwargs, known[0])]
        if name in DIMS or POOLS.fullmatch(name):
            return [_reduced(name, args, source)]
        if name == "_softmax" and args[1] % args[0].ndim == 1:
            return [_over_channels(source, args[0].shape[1], torch.softmax)]
        if name == "glu":
            return [F.glu(source, 0).repeat_interleave(2, 0)]
        if name.endswith("_norm"):
            return [normalised(source)]
        return self._moved(func, args, kwargs, known)

    def _product(self, func, args: tuple, source: Tensor) -> Tensor:
        """Return a normal shadow after a product. The weights give its mean and variance."""
        if func is aten.convolution.default:
            (x, weight, bias, stride), (transposed, groups) = args[:4], (args[6], args[8])
        else:
            (x, weight), bias = args[-2:], args[0] if len(args) == 3 else None
        if x not in self.shadows or weight in self.shadows:  # attention, or weights that depend on the input
            return source
        weight = weight.detach().float().cpu()
        if func is not aten.convolution.default:
            weight, groups, share = weight.reshape(-1, *weight.shape[-2:])[0].t(), 1, 1.0
        elif transposed:  # a position gets k^2 / stride^2 of the k^2 taps
            weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
            share = 1 / math.prod(stride)
        else:
            share = 1.0
        weight = weight.flatten(1)  # (O, N)
        depthwise = groups > 1 and groups == x.shape[1]
        variance = source.var(1, correction=0, keepdim=True) if depthwise else spread(source)
        mean = source.mean(1, keepdim=True) if depthwise else source.mean()
        out = self.fresh() * (per_row(weight.square().sum(1)) * share * variance).sqrt()
        out = out + per_row(weight.sum(1)) * share * mean
        return out if bias is None else out + per_row(bias.reshape(-1))

    def _literally(self, func, args: tuple, kwargs: dict, x: Tensor) -> Tensor:
        """Run a pointwise operation on the shadows."""
        channels = x.shape[1] if x.ndim > 1 else 1

        def shadow(value):
            if not isinstance(value, Tensor):
                return value
            if value in self.shadows:
                return self.shadows[value].clone()
            if value.numel() == channels > 1:
                return per_row(value.flatten())
            value = value.detach().cpu()
            return value.flatten()[0] if value.numel() == 1 else value.float().mean()

        kwargs = {key: value for key, value in kwargs.items() if not isinstance(value, torch.dtype | torch.device)}
        return func(*tree_map(shadow, args), **tree_map(shadow, kwargs))

    def _moved(self, func, args: tuple, kwargs: dict, known: list[Tensor]) -> list[Tensor]:
        """Return the shadows after an operation that only moves values.

        It runs on maps that hold for each value the number of its row. The result shows the rows of each output.
        """
        rows = torch.cat([torch.zeros(1, VALUES), *(self.shadows[t].float() for t in known)])  # row 0: padding

        def origin(value):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            probe = torch.zeros(value.shape, device=value.device)
            for i, tensor in enumerate(known):
                if value is tensor:
                    each = torch.arange(value[0].numel(), device=value.device) * ROWS // max(value[0].numel(), 1)
                    probe = (1 + i * ROWS + each.float()).view(value.shape[1:]).expand(value.shape).contiguous()
            return probe

        moved = []
        for out in tensors_in(func(*tree_map(origin, args), **tree_map(origin, kwargs))):
            origins = out.float().nan_to_num(0.0).flatten(1 if out.ndim > 1 else 0)[:1].reshape(1, -1)
            picked = ((torch.arange(ROWS) + PLACE) * origins.shape[1] / ROWS).long()
            origins, largest = origins[0].cpu()[picked], F.adaptive_max_pool1d(origins, ROWS)[0].cpu()
            origins = torch.where(origins == 0, largest, origins)  # a padded border does not count
            whole = origins.round().clamp(0, len(rows) - 1)
            moved.append(rows[whole.long()] if torch.allclose(whole, origins) else self.shadows[known[0]])
        return moved


def _reduced(name: str, args: tuple, source: Tensor) -> Tensor:
    """Return the shadow of means, sums and maxima over channels or all positions.

    Pooling over windows does not change the shadow.
    """
    x = args[0]
    if name in DIMS:
        given = args[1] if len(args) > 1 else None
        dims = [d % x.ndim for d in (tree_leaves(given) if given not in (None, []) else range(x.ndim))]
        if 1 in dims and x.ndim > 2:
            source = _over_channels(source, x.shape[1], DIMS[name])
        if any(d > 1 for d in dims):
            positions = math.prod(x.shape[d] for d in dims if d > 1) if name == "sum" else 1
            source = (torch.amax if name == "amax" else torch.mean)(source, 1, keepdim=True) * positions
        return source
    size = args[1]
    if all(n == 1 for n in size) if "adaptive" in name else tuple(size) == tuple(x.shape[2:]):
        return (torch.amax if "max" in name else torch.mean)(source, 1, keepdim=True)
    return source


def _over_channels(shadow: Tensor, channels: int, fn) -> Tensor:
    """Apply fn(..., 0) across channels, that is over the rows of all channels of a group."""
    n = channels if ROWS % channels == 0 else ROWS
    done = fn(shadow.unflatten(0, (n, ROWS // n)), 0)
    return done.flatten(0, 1) if done.ndim == 3 else done.repeat_interleave(n, 0)


def tensors_in(tree) -> list[Tensor]:
    """Return the tensors among arguments, also nested ones."""
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]
