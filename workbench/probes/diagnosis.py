"""Find wrong constants in normalizer-free networks of this library.

The signal that follows from the built-in constants is compared with the signal of the paper's design. Nothing is
measured, so the result is exact. For a constant that differs, the report guesses which mistake leads to its value.
"""

import math
from typing import cast

import pandas as pd
from torch import Tensor, nn

from workbench.models.activations import ACTIVATIONS
from workbench.models.layers import ScaledStdConv2d
from workbench.probes.rules import Fault
from workbench.probes.signal import LibraryBlock, library_blocks
from workbench.probes.theory import Design, expected_signal, gamma_of, is_normalizer_free

EXACT = 0.01  # relative; the authors' gammas are exact to 0.001, and smaller changes of a variance do no harm
NORMS = (0.3, 3.0)  # allowed norms of a new filter; with weights of variance 1 / fan-in the norm is 1


def construction_faults(model: nn.Module, image_size: int) -> list[Fault]:
    """Find blocks whose constants lead to another variance than the design.

    Args:
        model: The network.
        image_size: Height and width of the images, pixels.

    Returns:
        One fault per block; empty for networks that are not built of this library's normalizer-free blocks.
    """
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
            cause = f"{cause}; the branch has variance {actual:.3g}, but the design leads to {expected:.3g}"
            faults.append(Fault(i, verdict, cause, _CURES[verdict]))
    return faults


_CURES = {
    "off design": "set the scale of a branch's first convolution, and of the shortcut's, to gamma / beta, and that of "
    "the others to gamma; compute beta from the expected variance, which the first block of a stage resets",
    "means kept": "use ScaledStdConv2d instead of plain convolutions",
}


def _differs(built: pd.DataFrame, designed: pd.DataFrame, i: int) -> bool:
    def off(actual: float, expected: float) -> bool:
        return not abs(actual - expected) <= EXACT * abs(expected)

    moved = [off(cast(float, built[name][i]), cast(float, designed[name][i])) for name in ("var", "residual_var")]
    return any(moved) or built.mean_sq[i] - designed.mean_sq[i] > EXACT * designed["var"][i]


def _cause(block: LibraryBlock, design: Design) -> str | None:
    """Describe the first convolution of a block that differs from the design."""
    gamma, beta = gamma_of(block.act), design.beta[block]
    for name, layer in block.named_children():
        if not name.startswith("conv"):
            continue
        if not isinstance(layer, ScaledStdConv2d):
            return f"{name} is not standardised, so the means of its filters pass on the mean of the activations"
        reads_trunk = name in ("conv0", "conv_shortcut")
        wanted = gamma / beta if reads_trunk else gamma
        if abs(layer.scale / wanted - 1) > EXACT / 2:
            return f"{name}'s scale is {layer.scale:.4g}, not {wanted:.4g}: {_looks_like(layer.scale, wanted, beta)}"
    return None


def _looks_like(scale: float, wanted: float, beta: float) -> str:
    """Guess which mistake leads to this scale."""
    gamma = wanted * beta
    for over, suffix in ((1.0, ""), (beta, " over beta")):
        if math.isclose(scale * over, 1.0, rel_tol=1e-3):
            return f"gamma was left out (1{suffix})"
    for known, (_, constant) in ACTIVATIONS.items():
        for over in (1.0, beta):
            if math.isclose(scale * over, constant, rel_tol=1e-3) and not math.isclose(constant, gamma, rel_tol=1e-3):
                return f"that is the gamma of {known}"
    return f"beta is taken as {gamma / scale:.4g}, but the expected deviation of the trunk is {beta:.4g}"


def weight_faults(model: nn.Module) -> list[Fault]:
    """Find standardised convolutions whose filters do not have a norm near 1.

    The forward pass divides the norm out. But AGC compares gradients with it, and the learning rate moves such filters
    too fast or too slowly.

    Returns:
        At most one fault, which names the first such convolution.
    """
    norms = {
        name: cast(Tensor, module.weight).detach().flatten(1).double().norm(dim=1).median().item()
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
            "the forward pass divides it out, but gradients and clipping depend on it",
            "draw the weights with variance 1 / fan-in, which gives filters a norm of about 1",
        )
    ]
