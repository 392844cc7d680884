"""A survey of a network with BatchNorm from one run: convolutions, norms and block ends.

It also finds the constants that the normalizer-free version needs. Sources: NFNet paper, section 2. The precursor's
section 3 for alpha and beta.

    convolution   scale = 1 / standard deviation of its input, which is gamma / beta. Its output is N(0, 1) again
    branch        scale = alpha / its standard deviation
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.weak import WeakIdKeyDictionary

from workbench.models.additions import ADDITIONS, PRODUCTS, Addition, aten, watch_modules
from workbench.normfree.fused_norms import is_plain
from workbench.normfree.operations import OTHERS
from workbench.normfree.shadows import Shadows, is_constant, normalised, per_row, spread, tensors_in
from workbench.normfree.standardized_convs import can_be_standardized

LINEAR = {"clone", "add", "add_", "mul", "mul_", "div", "div_"}  # pointwise operations that keep a map linear


class Trail(NamedTuple):
    """The operations that led to a map.

    Attributes:
        last: The last standardised convolutions, with no other product after them.
        convs: Whether a standardised convolution came after the last block end.
        linear: Whether the map is linear in the output of the last convolution.
        upsampled: Whether the map was upsampled after the last block end.
    """

    last: frozenset = frozenset()
    convs: bool = False
    linear: bool = False
    upsampled: bool = False


@dataclass
class End:
    """The end of a residual block.

    Attributes:
        number: The number of the addition, counted from 0.
        path: The module that runs the addition.
        makers: The modules that returned the branch, the innermost first.
        last: The last convolutions of the branch, see `Trail`.
        linear: Whether the branch is linear in the output of its last convolution.
        scale: Alpha over the standard deviation of the branch.
        variance: The variance of the trunk after the block.
    """

    number: int
    path: str
    makers: list[str]
    last: frozenset
    linear: bool
    scale: float
    variance: float = math.nan


@dataclass
class Survey:
    """The results of a survey. Modules are given by name.

    Attributes:
        calls: How often each module ran.
        uses: How often operations read the output of each module.
        scales: The scales of each convolution, one per call.
        left: Convolutions that stay as they are, and the reason.
        norms: The modules whose output each BatchNorm read, one per call.
        betas: Standard deviations of trunks that a BatchNorm normalises and an addition reads.
        written: BatchNorms whose output is changed in place.
        followed: Convolutions with a product or a BatchNorm behind them.
        ends: The block ends.
        functional: Modules whose code normalises by the batch without a module.
        fused: {BatchNorm that does more than normalise: arguments and named arguments of a call}.
    """

    calls: Counter = field(default_factory=Counter)
    uses: Counter = field(default_factory=Counter)
    scales: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    left: dict[str, str] = field(default_factory=dict)
    norms: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    betas: dict[str, float] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    followed: set[str] = field(default_factory=set)
    ends: list[End] = field(default_factory=list)
    functional: list[str] = field(default_factory=list)
    fused: dict[str, tuple] = field(default_factory=dict)


class Surveyor(Shadows):
    """A context that fills `survey` while the model runs inside it.

    Args:
        model: A network with BatchNorm.
        inputs: The inputs of the network.
        alpha: The paper's alpha.
        variances: {path of a block: variance of the trunk after it}, instead of the expected variances.
        blocks: Names of modules whose additions are block ends. None means all additions that look like block ends.
        skip: Numbers of additions that are no block ends.

    Attributes:
        survey: The results.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: list[Tensor],
        *,
        alpha: float,
        variances: Mapping[str, float],
        blocks: Collection[str] | None,
        skip: Collection[int],
    ):
        super().__init__(inputs)
        self.model, self.modules = model, dict(model.named_modules())
        self.alpha, self.variances, self.blocks, self.skip = alpha, variances, blocks, skip
        self.survey = Survey()
        self.trails = WeakIdKeyDictionary({t: Trail() for t in inputs})
        self.makers = WeakIdKeyDictionary()
        self.normed = WeakIdKeyDictionary()  # {output of a BatchNorm: its name}
        self.additions, self.end, self.branch = 0, None, None

    def __enter__(self):
        fused = {name: m for name, m in self.modules.items() if isinstance(m, _BatchNorm) and not is_plain(m)}
        self.hooks = watch_modules(self.model, self.stack)
        for name, module in fused.items():
            keep = partial(self._called, name)
            self.hooks.append(module.register_forward_pre_hook(keep, with_kwargs=True))
        for name, module in self.modules.items():
            self.hooks.append(module.register_forward_hook(lambda m, args, out, name=name: self._returned(name, out)))
        return super().__enter__()

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()
        return super().__exit__(*error)

    def _called(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.survey.fused[name] = (args, kwargs)

    def _returned(self, name: str, out) -> None:
        self.survey.calls[name] += 1
        if isinstance(out, Tensor) and out in self.shadows:
            cast(list, self.makers.setdefault(out, [])).append(name)

    def run(self, func, args: tuple, kwargs: dict):
        """Run one operation on maps and on their shadows, and update the survey."""
        if func._schema.is_mutable and args and args[0] in self.normed:
            self.survey.written.add(self.normed[args[0]])
        if func in ADDITIONS:
            self._divide_trunks(args)
        out = super().run(func, args, kwargs)
        known = [t for t in tensors_in((args, kwargs)) if t in self.trails]
        for tensor in known:
            self.survey.uses.update(self.makers.get(tensor, []))
        outputs = [t for t in tensors_in(out) if t in self.shadows]
        if known and outputs:
            trail = self._trail(func, known, outputs[0])
            for tensor in outputs:
                self.trails[tensor], self.makers[tensor] = trail, []
                self.normed.pop(tensor, None)
            if "batch_norm" in func.overloadpacket.__name__ and self.stack[-1] in self.survey.norms:
                self.normed[outputs[0]] = self.stack[-1]
        return out

    def _trail(self, func, known: list[Tensor], out: Tensor) -> Trail:
        trails, name = [self.trails[t] for t in known], func.overloadpacket.__name__
        last = frozenset().union(*(t.last for t in trails))
        before, after = known[0].shape[2:].numel(), out.shape[2:].numel()
        # a gate that is expanded over the map has one position before, which is no upsampling
        grown = out.ndim == known[0].ndim > 2 and after >= 2 * before > 2
        upsampled = grown or any(t.upsampled for t in trails)
        convs, linear = any(t.convs for t in trails), any(t.linear for t in trails)
        if func in PRODUCTS:
            self.survey.followed |= last
            is_conv = self.stack[-1] in self.survey.scales and func is aten.convolution.default
            return Trail(frozenset([self.stack[-1]] if is_conv else []), convs or is_conv, is_conv, upsampled)
        if "batch_norm" in name:
            self.survey.followed |= last
        elif (torch.Tag.pointwise in func.tags and name not in LINEAR) or name.removesuffix("_") in OTHERS:
            linear = False
        return Trail(last, convs, linear, upsampled)

    # ---- shadows of the normalizer-free network

    def shadows_of(self, func, name: str, args: tuple, kwargs: dict, known: list[Tensor]) -> list[Tensor]:
        """Return the shadows that the outputs will have in the normalizer-free network."""
        if func is aten.convolution.default and args[0] in self.shadows and self._is_to_be_standardized(args):
            self.survey.scales[self.stack[-1]].append(spread(self.shadows[args[0]]) ** -0.5)
            return [self.fresh() if args[2] is None else self.fresh() + per_row(args[2])]
        if "batch_norm" in name:
            return [self._without_norm(args)]
        return super().shadows_of(func, name, args, kwargs, known)

    def _is_to_be_standardized(self, args: tuple) -> bool:
        name, weight = self.stack[-1], args[1]
        conv = self.modules[name]
        if name in self.survey.left:
            return False
        if conv._parameters.get("weight") is not weight:
            self.survey.left[name] = "its weight is not one of its parameters"
        elif is_constant(self.shadows[args[0]]):
            self.survey.left[name] = "reads a map pooled to one position"
        elif not can_be_standardized(conv):
            self.survey.left[name] = "has one weight per unit, or an unknown layout"
        return name not in self.survey.left

    def _without_norm(self, args: tuple) -> Tensor:
        name, shadow = self.stack[-1], self.shadows[args[0]]
        norm = self.modules[name]
        if isinstance(norm, _InstanceNorm):
            return normalised(shadow, 1)
        if not isinstance(norm, _BatchNorm):
            self.survey.functional.append(name)
            return shadow
        makers, trail = self.makers.get(args[0]) or [""], self.trails[args[0]]
        convs = [maker for maker in makers if maker in self.survey.scales]
        conv = convs[0] if convs and trail.linear else None  # an activation may follow inside the module
        self.survey.norms[name].append(conv or next((maker for maker in makers if maker not in convs), ""))
        if conv is None or not norm.affine or not norm.weight.any():
            return shadow
        shadow = normalised(shadow, 1) * per_row(norm.weight)
        return shadow if norm.bias is None else shadow + per_row(norm.bias)

    def _divide_trunks(self, args: tuple) -> None:
        """Divide by beta where a BatchNorm reads the trunk and an addition reads the BatchNorm.

        No convolution follows before the addition, so no convolution's scale can contain beta.
        """
        for tensor in args[:2]:
            if isinstance(tensor, Tensor) and tensor in self.normed and tensor is not self.branch:
                name, shadow = self.normed[tensor], self.shadows[tensor]
                if self.survey.norms[name][-1] not in self.survey.scales and not is_constant(shadow):
                    self.survey.betas[name] = spread(shadow) ** 0.5
                    self.shadows[tensor] = shadow / self.survey.betas[name]

    # ---- block ends

    def before_addition(self, addition: Addition) -> None:
        """Scale the shadow of the branch if the addition ends a block."""
        shortcut, branch = self.trails[addition.shortcut], self.trails[addition.branch]
        number = self.additions
        self.additions += 1
        if self.blocks is None:  # decoders and pyramids join two resolutions, which is no block end
            wanted = shortcut.upsampled == branch.upsampled
        else:
            wanted = any(addition.module == b or addition.module.startswith(f"{b}.") for b in self.blocks)
        shadow = self.shadows[addition.branch]
        gated = shadow * self.shadows.get(addition.gate, 1.0) if addition.gate is not None else shadow
        if not wanted or not branch.convs or number in self.skip or is_constant(gated):
            return
        scale = self.alpha * spread(gated) ** -0.5
        self.shadows[addition.branch] = shadow * scale
        makers = list(self.makers.get(addition.branch) or [])
        self.branch = addition.branch
        self.end = End(number, addition.module, makers, branch.last, branch.linear, scale)

    def after_addition(self, out: Tensor) -> None:
        """Record the block end and the variance of the trunk after it."""
        if self.end is not None:
            measured = self.variances.get(self.end.path)
            if measured is not None:
                self.shadows[out] = self.shadows[out] * (measured / spread(self.shadows[out])) ** 0.5
            self.end.variance = spread(self.shadows[out])
            self.survey.ends.append(self.end)
        self.end, self.branch = None, None
        self.trails[out] = Trail(last=self.trails[out].last)
