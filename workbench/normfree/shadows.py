"""What the channels of every map look like at initialisation, found without the map: its shadow.

Source: the NFNet precursor paper, section 4: pixels and the outputs of convolutions are taken as N(0, 1) in every
channel, and gamma and beta are 1 over the deviation of what is made of them. Here that is carried through a network
whose code nobody has read: as it runs, each operation on maps is done on their shadows, too.

A shadow is (ROWS, VALUES): in each row the values of one channel over samples and positions, the rows evenly spaced
over the channels. Pooling windows, interpolation and padding are ignored, as the authors ignore them: neighbouring
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

from workbench.models.additions import PRODUCTS, Additions

aten = torch.ops.aten
ROWS, VALUES = 64, 1024
UNTAGGED = {"hardswish", "hardswish_", "_prelu_kernel", "_to_copy"}  # pointwise, though torch does not say so
DIMS = {"mean": torch.mean, "sum": torch.sum, "amax": torch.amax}  # over the dimensions they are given
POOLS = re.compile("(_?adaptive_)?(avg|max)_pool[123]d(_with_indices)?")


def _normal_values() -> Tensor:
    """VALUES quantiles of N(0, 1), of variance 1."""
    z = math.sqrt(2) * torch.erfinv((torch.arange(VALUES).double() + 0.5) / VALUES * 2 - 1)
    return (z / z.std(correction=0)).float()


NORMAL = _normal_values()
PLACE = torch.arange(ROWS) * (math.sqrt(5) - 1) / 2 % 1  # where in its part a row looks: evenly, in any layout


def spread(shadow: Tensor) -> float:
    """The variance within a channel, averaged over channels."""
    return shadow.double().var(1, correction=0).mean().item()


def is_constant(shadow: Tensor) -> bool:
    """Whether channels do not vary: the map was pooled to one position."""
    return spread(shadow) <= 1e-9 * shadow.double().square().mean().item()


def normalised(shadow: Tensor, dim: int | None = None) -> Tensor:
    """After a norm over a sample, or over each channel of it (`dim` 1): mean 0, variance 1, unless it was constant."""
    var, mean = torch.var_mean(shadow, dim, correction=0, keepdim=True)
    return (shadow - mean) * var.clamp_min(1e-12).rsqrt()


def per_row(values: Tensor) -> Tensor:
    """Of one value a channel (C,), those of the rows, (ROWS, 1)."""
    index = (torch.arange(ROWS) * 2 + 1) * len(values) // (2 * ROWS)
    return values.detach().float().cpu()[index][:, None]


class Shadows(Additions):
    """While it is entered, `shadows[t]` is the shadow of each tensor t that is made from `inputs`."""

    def __init__(self, inputs: Sequence[Tensor]):
        super().__init__(inputs, self.before_addition, self.after_addition)
        self.generator = torch.Generator().manual_seed(0)
        self.shadows = WeakIdKeyDictionary({t: self.fresh() for t in inputs})
        self.noise = WeakIdKeyDictionary()  # what was drawn at random: masks of dropout

    def before_addition(self, addition) -> None: ...

    def after_addition(self, out: Tensor) -> None: ...

    def fresh(self) -> Tensor:
        """N(0, 1) in every channel, independent of all before."""
        return NORMAL[torch.rand(ROWS, VALUES, generator=self.generator).argsort(1)]

    def run(self, func, args: tuple, kwargs: dict):
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
        """The shadows of what `func` returns, in order."""
        source = self.shadows[known[0]]
        if any(t in self.noise for t in tensors_in((args, kwargs))):
            return [source]
        try:
            return self._by_rule(func, name, args, kwargs, known, source)
        except (RuntimeError, TypeError, ValueError, IndexError):  # an operation that the rules do not fit
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
        """A weighted sum of many values is normal; its mean and variance follow from the weights."""
        if func is aten.convolution.default:
            (x, weight, bias, stride), (transposed, groups) = args[:4], (args[6], args[8])
        else:
            (x, weight), bias = args[-2:], args[0] if len(args) == 3 else None
        if x not in self.shadows or weight in self.shadows:  # attention, or weights made from the input
            return source
        weight = weight.detach().float().cpu()
        if func is not aten.convolution.default:
            weight, groups, share = weight.reshape(-1, *weight.shape[-2:])[0].t(), 1, 1.0
        elif transposed:  # of its k^2 taps a position gets k^2 / stride^2
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
        """What only moves values is done on maps that hold, for each value, the row it has; so its rows are found."""
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
            origins = torch.where(origins == 0, largest, origins)  # a border that was padded
            whole = origins.round().clamp(0, len(rows) - 1)
            moved.append(rows[whole.long()] if torch.allclose(whole, origins) else self.shadows[known[0]])
        return moved


def _reduced(name: str, args: tuple, source: Tensor) -> Tensor:
    """Means, sums and maxima over all positions, and over what follows the samples; over windows they are ignored."""
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
    """fn(shadow, 0) over rows that are `channels` apart, as the channels are."""
    n = channels if ROWS % channels == 0 else ROWS
    done = fn(shadow.unflatten(0, (n, ROWS // n)), 0)
    return done.flatten(0, 1) if done.ndim == 3 else done.repeat_interleave(n, 0)


def tensors_in(tree) -> list[Tensor]:
    """The tensors among arguments, nested ones too."""
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]
