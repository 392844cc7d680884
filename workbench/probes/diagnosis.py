"""What is built wrongly in a normalizer-free network of ours: its constants against those that the paper asks for.

Nothing here is measured, so nothing is uncertain: the signal that the built-in constants lead to is compared with the
signal that the design leads to, and a constant that differs is named with what it looks like.
"""

import math

import pandas as pd
from torch import nn

from workbench.models.activations import ACTIVATIONS
from workbench.models.layers import ScaledStdConv2d
from workbench.probes.rules import Fault
from workbench.probes.signal import library_blocks
from workbench.probes.theory import Design, expected_signal, gamma_of, is_normalizer_free

EXACT = 0.01  # the authors' table of gammas is exact to a thousandth; what moves a variance by less harms nobody
NORMS = (0.3, 3.0)  # of a fresh filter: drawn with variance 1 / fan-in, its norm is 1


def construction_faults(model: nn.Module, image_size: int) -> list[Fault]:
    """Blocks whose constants lead to another variance than the design; empty for networks that have none of ours."""
    blocks = library_blocks(model)
    if not blocks or not all(is_normalizer_free(block) for block in blocks):
        return []
    if any(getattr(block, "post_activation", False) for block in blocks):
        return []
    built, designed = expected_signal(model, image_size), expected_signal(model, image_size, designed=True)
    design, faults = Design(blocks), []
    for i, block in enumerate(blocks, start=1):
        cause = _cause(block, design)
        if cause is not None and _differs(built, designed, i):
            expected, actual = designed.residual_var[i], built.residual_var[i]
            verdict = "means kept" if "standardised" in cause else "off design"
            cause = f"{cause}; the branch gets variance {actual:.3g} where the design says {expected:.3g}"
            faults.append(Fault(i, verdict, cause, _CURES[verdict]))
    return faults


_CURES = {
    "off design": "set the convolutions' scale to gamma / beta (the first of a branch, and the shortcut's) and gamma "
    "(the others), beta from the expected variance, which a stage's first block resets",
    "means kept": "use ScaledStdConv2d instead of the plain convolutions",
}


def _differs(built: pd.DataFrame, designed: pd.DataFrame, i: int) -> bool:
    def off(actual: float, expected: float) -> bool:
        return not abs(actual - expected) <= EXACT * abs(expected)

    moved = [off(built[name][i], designed[name][i]) for name in ("var", "residual_var")]
    return any(moved) or built.mean_sq[i] - designed.mean_sq[i] > EXACT * designed["var"][i]


def _cause(block: nn.Module, design: Design) -> str | None:
    """The first convolution of a block that is not what the design asks for, and what it looks like."""
    gamma, beta = gamma_of(block.act), design.beta[block]
    for name, layer in block.named_children():
        if not name.startswith("conv"):
            continue
        if not isinstance(layer, ScaledStdConv2d):
            return f"{name} is not standardised, so its filters' means let the mean of the activations through"
        reads_trunk = name in ("conv0", "conv_shortcut")
        asked = gamma / beta if reads_trunk else gamma
        if abs(layer.scale / asked - 1) > EXACT / 2:
            return f"{name}'s scale is {layer.scale:.4g}, not {asked:.4g}: {_looks_like(layer.scale, asked, beta)}"
    return None


def _looks_like(scale: float, asked: float, beta: float) -> str:
    gamma = asked * beta
    for over, suffix in ((1.0, ""), (beta, " over beta")):
        if math.isclose(scale * over, 1.0, rel_tol=1e-3):
            return f"gamma was left out (1{suffix})"
    for known, (_, constant) in ACTIVATIONS.items():
        for over in (1.0, beta):
            if math.isclose(scale * over, constant, rel_tol=1e-3) and not math.isclose(constant, gamma, rel_tol=1e-3):
                return f"that is the gamma of {known}"
    return f"beta is taken as {gamma / scale:.4g} where the expected deviation of the trunk is {beta:.4g}"


def weight_faults(model: nn.Module) -> list[Fault]:
    """Standardised convolutions whose filters are not of norm about 1: invisible forward, for the norm is divided out,
    but AGC measures gradients by it, and a rate moves such filters too fast or too slowly."""
    norms = {
        name: module.weight.detach().flatten(1).double().norm(dim=1).median().item()
        for name, module in model.named_modules()
        if hasattr(module, "standardized_weight") and not getattr(module, "transposed", False)
    }
    off = {name: norm for name, norm in norms.items() if not NORMS[0] <= norm <= NORMS[1]}
    if not off:
        return []
    name, norm = next(iter(off.items()))
    return [
        Fault(
            None,
            "weights at the wrong scale",
            f"the filters of {name} have norm {norm:.3g} ({len(off)} of {len(norms)} such convolutions are off): "
            "the forward pass does not see it, but gradients and clipping do",
            "draw the weights with variance 1 / fan-in, so that a filter's norm is about 1",
        )
    ]
