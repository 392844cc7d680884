"""The replacement of leaf modules by those of a normalizer-free network.

A convolution becomes a standardised convolution. A BatchNorm becomes the gain at the end of a branch, a constant, or
nothing. If it comes right after a convolution, its weight and bias become the gain and bias of the convolution.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from workbench.normfree.fused_norms import WithoutNorm, is_plain, only_module
from workbench.normfree.standardized_convs import BranchEnd, BranchGain, Scale, standardized
from workbench.normfree.survey import End, Survey

EACH = "normalises each sample by itself"
STAYS = {nn.Linear: "not standardised", nn.LayerNorm: EACH, nn.GroupNorm: EACH, _InstanceNorm: EACH}


class Row(NamedTuple):
    """A row of the report: a module that was replaced or left.

    Attributes:
        path: The name of the module.
        was: Its class before.
        became: Its class after.
        scale: The constant in the new module, if any.
        note: What happened to the module, or why it stays.
    """

    path: str
    was: str
    became: str
    scale: float | None
    note: str


def place(end: End, survey: Survey, modules: Mapping[str, nn.Module]) -> str | None:
    """Find the module that the gain of a block follows or replaces.

    The first choice is a module that returns the branch and nothing else: a BatchNorm, then an Identity, then any. The
    second choice is the last convolution, if only factors follow it.

    Args:
        end: The block end.
        survey: The survey of the network.
        modules: The modules of the network by name.

    Returns:
        The name of the module, or None if neither exists.
    """

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
    """Replace the leaf modules of a network.

    Args:
        model: The network, which is changed in place.
        survey: Its survey.
        places: The module of each gain, one per block end.
        skip_gain: The initial value of the learnt skip gains.

    Returns:
        The network, one row per module of interest, and sentences about what could not be done.
    """
    modules = dict(model.named_modules())
    was = {name: type(module).__name__ for name, module in modules.items()}
    left = {name: "no layer follows it" for name in survey.scales if name not in survey.followed}
    left |= survey.left
    owners = _owners(survey)  # {BatchNorm: the convolution that takes over its weight and bias}
    norms = {conv: cast(_BatchNorm, modules[norm]) for norm, conv in owners.items()}
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
            notes[name] = f"runs {len(scales)} times, with scales of {min(scales):.4g} to {max(scales):.4g}"
            undone.append(f"'{name}' {notes[name]}. It has the scale of the first run, {scales[0]:.4g}.")

    like = next(model.parameters())
    gains: dict[str, BranchGain] = {}
    for name, end in zip(places, survey.ends, strict=True):
        gain = gains.setdefault(name, BranchGain(end.scale, skip_gain, like))
        if abs(gain.scale / end.scale - 1) > 0.01:
            undone.append(
                f"'{name}' ends several branches, with scales of {gain.scale:.4g} and {end.scale:.4g}. "
                "It has the first scale."
            )
    for name, norm in modules.items():
        if isinstance(norm, _BatchNorm):
            notes[name] = f"weight and bias went to {owners[name]}" if name in owners else ""
            undone += _losses(name, norm, survey, modules, left, owners)
            call = survey.fused.get(name)
            made[name] = _instead(norm, _constant(name, survey, owners), gains.pop(name, None), call)
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
            undone.append(
                f"'{name}' stays as it is, because the input does not reach it. Convert in the mode that runs it."
            )
        why = left.get(name) or next((why for kind, why in STAYS.items() if isinstance(module, kind)), None)
        if why:
            rows.append(Row(name, was[name], was[name], None, why))

    instead = {modules[name]: module for name, module in made.items()}
    for parent in modules.values():
        for name, child in parent._modules.items():
            parent._modules[name] = None if child is None else instead.get(child, child)
    return instead.get(model, model), rows, undone


def _owners(survey: Survey) -> dict[str, str]:
    """Map each BatchNorm to the convolution before it.

    The BatchNorm must always read this convolution, and nothing else may read it.
    """
    return {
        norm: reads[0]
        for norm, reads in survey.norms.items()
        if len(set(reads)) == 1 and reads[0] in survey.scales and survey.uses[reads[0]] == len(reads)
    }


def _gain_and_bias(conv: nn.Module, norm: _BatchNorm | None) -> tuple[nn.Parameter, nn.Parameter]:
    weight = cast(nn.Parameter, conv.weight)
    n = cast(int, conv.out_channels) if hasattr(conv, "out_channels") else len(weight)
    ones = nn.Parameter(weight.new_ones(n), weight.requires_grad)
    zeros = nn.Parameter(weight.new_zeros(n), weight.requires_grad)
    if norm is None:
        bias = getattr(conv, "bias", None)
        return ones, bias if isinstance(bias, nn.Parameter) else zeros
    if not norm.affine:
        return ones, zeros
    bias = zeros if norm.bias is None else norm.bias
    if norm.weight.any():
        return norm.weight, bias
    ones.requires_grad_(norm.weight.requires_grad)
    return ones, bias


def _constant(name: str, survey: Survey, owners: Mapping[str, str]) -> Scale | None:
    """Return the constant that must replace a BatchNorm, or None."""
    if name in survey.betas:
        return Scale(1 / survey.betas[name])
    if name in survey.written and name not in owners:  # without it the next operation would write into the trunk
        return Scale(1.0)
    return None


def _instead(norm: _BatchNorm, constant: Scale | None, gain: BranchGain | None, call: tuple | None) -> nn.Module:
    """Return the replacement of a BatchNorm. What its class does besides normalising stays."""
    module = nn.Identity() if is_plain(norm) else only_module(norm, call)
    if module is None:
        kept = WithoutNorm(norm, None if constant is None else constant.scale)
        return kept if gain is None else BranchEnd(kept, gain)
    parts = [part for part in (constant, module, gain) if part is not None and type(part) is not nn.Identity]
    if len(parts) > 1:
        return nn.Sequential(*parts)
    return parts[0] if parts else nn.Identity()


def _losses(
    name: str,
    norm: _BatchNorm,
    survey: Survey,
    modules: Mapping[str, nn.Module],
    left: Mapping[str, str],
    owners: Mapping[str, str],
) -> list[str]:
    """Return sentences about what the network loses with a BatchNorm."""
    if not survey.norms[name]:
        return [f"'{name}' is removed, although the input does not reach it."]
    losses, read = [], survey.norms[name][0]
    if read in left or isinstance(modules.get(read), nn.Linear):
        losses.append(f"'{name}' normalised the output of '{read}', which is not standardised.")
    shifts = norm.bias is not None and norm.bias.any()
    if name not in owners and norm.affine and (shifts or not (norm.weight == 1).all()):
        losses.append(f"The weight and bias of '{name}' are lost, because no convolution belongs to it alone.")
    return losses
