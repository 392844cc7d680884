"""The operation: leaf modules of a network replaced by what a normalizer-free one has there.

A convolution becomes standardised. A BatchNorm becomes the gain at the end of a branch, nothing, or a constant. Its
weight and bias, right behind a convolution, are what that convolution's gain and bias are.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from workbench.normfree.standardized_convs import BranchEnd, BranchGain, Scale, standardized
from workbench.normfree.survey import End, Survey

EACH = "normalises each sample by itself"
STAYS = {nn.Linear: "not standardised", nn.LayerNorm: EACH, nn.GroupNorm: EACH, _InstanceNorm: EACH}


class Row(NamedTuple):
    """A module that was touched or left."""

    path: str
    was: str
    became: str
    scale: float | None
    note: str


def place(end: End, survey: Survey, modules: Mapping[str, nn.Module]) -> str | None:
    """The module that a block's gain goes behind, or into the place of: one that returns the branch and nothing else,
    a BatchNorm first; else the last convolution, where only factors follow it."""

    def only_ends(name: str) -> bool:
        return survey.calls[name] == survey.uses[name] == sum(name in other.makers for other in survey.ends)

    makers = [name for name in end.makers if only_ends(name)]
    for kind in (_BatchNorm, nn.Identity, nn.Module):
        for name in makers:
            if isinstance(modules[name], kind):
                return name
    if len(end.last) == 1 and end.linear:
        (conv,) = end.last
        if survey.calls[conv] == sum(end.last == other.last for other in survey.ends):
            return conv
    return None


def operate(
    model: nn.Module, survey: Survey, places: Sequence[str], skip_gain: float
) -> tuple[nn.Module, list[Row], list[str]]:
    """`model` with its leaves replaced, a row for each module of interest, and what could not be done.

    `places` of the gains, one for each end that was found.
    """
    modules = dict(model.named_modules())
    was = {name: type(module).__name__ for name, module in modules.items()}
    left = {name: "nothing is computed from its output" for name in survey.scales if name not in survey.followed}
    left |= survey.left
    owners = _owners(survey)  # {BatchNorm: the convolution that takes over its weight and bias}
    norms = {conv: modules[norm] for norm, conv in owners.items()}
    made: dict[str, nn.Module] = {}
    notes: dict[str, str] = {}
    undone: list[str] = []

    generator = torch.Generator().manual_seed(0)
    for name, scales in survey.scales.items():
        if name in left:
            continue
        gain, bias = _gain_and_bias(modules[name], norms.get(name))
        made[name] = standardized(modules[name], gain, bias, scales[0], generator)
        if max(scales) > 1.01 * min(scales):
            notes[name] = f"runs {len(scales)} times, which ask for scales of {min(scales):.4g} to {max(scales):.4g}"
            undone.append(f"'{name}' {notes[name]}: it has the first.")

    like = next(model.parameters())
    gains: dict[str, BranchGain] = {}
    for name, end in zip(places, survey.ends, strict=True):
        gain = gains.setdefault(name, BranchGain(end.scale, skip_gain, like))
        if abs(gain.scale / end.scale - 1) > 0.01:
            undone.append(f"'{name}' ends several branches, at scales of {gain.scale:.4g} and {end.scale:.4g}.")
    for name, norm in modules.items():
        if isinstance(norm, _BatchNorm):
            made[name] = _instead(norm, _constant(name, survey, owners), gains.pop(name, None))
            notes[name] = f"weight and bias went to {owners[name]}" if name in owners else ""
            undone += _losses(name, norm, survey, modules, left, owners)
    for name, gain in gains.items():
        made[name] = gain if type(modules[name]) is nn.Identity else BranchEnd(made.get(name, modules[name]), gain)

    rows = []
    for name, module in modules.items():
        if name in made:
            inner = made[name].module if isinstance(made[name], BranchEnd) else made[name]
            became = type(inner).__name__ + (" + BranchGain" if inner is not made[name] else "")
            rows.append(Row(name, was[name], became, getattr(inner, "scale", None), notes.get(name, "")))
            continue
        if isinstance(module, _ConvNd) and name not in left:
            left[name] = "the input does not reach it"
            undone.append(f"'{name}' stays as it is, not reached from the input: convert in the mode that runs it.")
        why = left.get(name) or next((why for kind, why in STAYS.items() if isinstance(module, kind)), None)
        if why:
            rows.append(Row(name, was[name], was[name], None, why))

    instead = {modules[name]: module for name, module in made.items()}
    for parent in modules.values():
        for name, child in parent._modules.items():
            parent._modules[name] = instead.get(child, child)
    return instead.get(model, model), rows, undone


def _owners(survey: Survey) -> dict[str, str]:
    """{BatchNorm: the convolution that it reads, always, and that nothing else reads}."""
    return {
        norm: reads[0]
        for norm, reads in survey.norms.items()
        if len(set(reads)) == 1 and reads[0] in survey.scales and survey.uses[reads[0]] == len(reads)
    }


def _gain_and_bias(conv: nn.Module, norm: nn.Module | None) -> tuple[nn.Parameter, nn.Parameter]:
    shape = conv.out_channels if hasattr(conv, "out_channels") else len(conv.weight)
    ones = nn.Parameter(conv.weight.new_ones(shape), conv.weight.requires_grad)
    zeros = nn.Parameter(conv.weight.new_zeros(shape), conv.weight.requires_grad)
    if norm is None:
        return ones, zeros if conv.bias is None else conv.bias
    if not norm.affine:
        return ones, zeros
    return norm.weight if norm.weight.any() else ones.requires_grad_(norm.weight.requires_grad), norm.bias


def _constant(name: str, survey: Survey, owners: Mapping[str, str]) -> Scale | None:
    """What must stand between what a BatchNorm read and what follows it."""
    if name in survey.betas:
        return Scale(1 / survey.betas[name])
    if name in survey.written and name not in owners:  # else what follows would write into the trunk
        return Scale(1.0)
    return None


def _instead(norm: nn.Module, constant: Scale | None, gain: BranchGain | None) -> nn.Module:
    """In a BatchNorm's place; what some libraries have inside of theirs, an activation, stays."""
    parts = [constant, *(m for m in norm.children() if type(m) is not nn.Identity), gain]
    parts = [part for part in parts if part is not None]
    if len(parts) > 1:
        return nn.Sequential(*parts)
    return parts[0] if parts else nn.Identity()


def _losses(
    name: str,
    norm: nn.Module,
    survey: Survey,
    modules: Mapping[str, nn.Module],
    left: Mapping[str, str],
    owners: Mapping[str, str],
) -> list[str]:
    """What goes with a BatchNorm and comes back nowhere."""
    if not survey.norms[name]:
        return [f"'{name}' is taken out, though the input does not reach it."]
    losses, read = [], survey.norms[name][0]
    if read in left or isinstance(modules.get(read), nn.Linear):
        losses.append(f"'{name}' normalised the output of '{read}', which is not standardised.")
    if name not in owners and norm.affine and (norm.bias.any() or not (norm.weight == 1).all()):
        losses.append(f"the weight and bias of '{name}' are lost, for it has no convolution of its own.")
    return losses
