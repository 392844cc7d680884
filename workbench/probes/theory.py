"""Expected signal propagation at initialisation, computed from the architecture alone.

`trunk` has the formulas for single layers, and this module applies them to the networks of this library. A network can
be taken as built, with the constants of its convolutions. Or it can be taken as designed, with the constants that the
paper's rule derives from alpha and the activations. If the two differ, a constant of the network is wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pandas as pd
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.models.activations import ACTIVATIONS, gamma
from workbench.models.layers import PlainConv2d, ScaledStdConv2d
from workbench.models.timm_nets import TimmConv2d
from workbench.probes.signal import COLUMNS, LibraryBlock, residual_blocks, signal_propagation
from workbench.probes.trunk import Activated, Trunk, activate, add, avg_pool, convolve, max_pool, noise, pixels_of

STATISTICS = ("mean_sq", "var", "residual_var", "grad_var")


def expected_signal(
    model: nn.Module, image_size: int | None = None, *, images: Tensor | None = None, designed: bool = False
) -> pd.DataFrame:
    """Predict the signal propagation of a network at initialisation.

    The theory covers this library's networks with scaled standardised, plain or BatchNorm layers, in training mode.
    BatchNorm is taken as exact. Squeeze-excite gates are taken as 1/2, their value for pooled zeros.

    Args:
        model: The network.
        image_size: Height and width of N(0, 1) images, pixels. Zero padding at the borders then counts. None: borders
            are ignored.
        images: Images (N, C, H, W), normalised as for the network, to predict for instead of N(0, 1) images. Their
            correlations over space and channels are followed through the network. A shortcut that averages keeps more
            of the variance of such images than of white noise.
        designed: In normalizer-free networks, take constants from the paper's rule instead of the network. The rule
            gives gamma by the activation and beta by alpha, doubles gates and standardises weights.

    Returns:
        The columns of `signal_propagation` without path, and grad_var for a gradient from N(0, 1) after the last block.

    Raises:
        WorkbenchError: If the theory does not cover the network, `image_size` is not a whole number of at least 1, or
            `images` do not vary.
    """
    if image_size is not None and not (isinstance(image_size, int) and image_size >= 1):
        raise WorkbenchError(f"`image_size` must be a whole number of pixels, at least 1, got {image_size!r}.")
    blocks = residual_blocks(model)
    scales = _Scales(blocks, designed)
    trunk = _stem(model, scales, noise(image_size) if images is None else pixels_of(images))
    rows, back = [_row(0, -1, trunk, math.nan)], []
    for i, block in enumerate(blocks):
        trunk, residual = _block(block, replace(trunk, back=1.0), scales)
        rows.append(_row(i + 1, block.stage, trunk, residual.V))
        back.append(trunk.back)
    gradient = [math.prod(back[i:]) for i in range(len(back) + 1)]
    return pd.DataFrame(rows, columns=COLUMNS).assign(grad_var=gradient)


def compare_signal(model: nn.Module, x: Tensor, *, natural: bool = False, **measured) -> pd.DataFrame:
    """Compare the measured signal propagation with the theory.

    Args:
        model: The network.
        x: Images (N, C, H, W).
        natural: Predict for the images themselves. Otherwise predict for N(0, 1) images of their size.
        **measured: Arguments of `signal_propagation`.

    Returns:
        The columns of `signal_propagation`, expected_mean_sq, expected_var, expected_residual_var and
        expected_grad_var. Columns such as var_deviation hold measured / expected - 1 of the variances.

    Raises:
        WorkbenchError: As in `signal_propagation` and `expected_signal`.
    """
    expected = expected_signal(model, images=x) if natural else expected_signal(model, x.shape[-1])
    return with_expected(signal_propagation(model, x, **measured), expected)


def with_expected(measured: pd.DataFrame, expected: pd.DataFrame) -> pd.DataFrame:
    """Add the expected columns and the relative deviations to the measured table."""
    table = measured.join(expected[list(STATISTICS)].add_prefix("expected_"))
    for name in STATISTICS[1:]:
        if name in table:
            table[f"{name}_deviation"] = table[name] / table[f"expected_{name}"] - 1
    return table


def is_normalizer_free(block: nn.Module) -> bool:
    """Return whether a block of this library computes h + alpha f(h / beta).

    Such a block has an attribute alpha.
    """
    return "alpha" in vars(block)


class Design:
    """The paper's rule for a network's blocks.

    Args:
        blocks: The blocks, in order.

    Attributes:
        beta: By block the expected standard deviation of its input.
    """

    def __init__(self, blocks: Sequence[LibraryBlock]):
        self.beta: dict[nn.Module, float] = {}
        variance = 1.0
        for i, block in enumerate(blocks):
            self.beta[block] = math.sqrt(variance)
            first = i == 0 or block.stage != blocks[i - 1].stage
            variance = (1.0 if first else variance) + block.alpha**2


class _Scales(Design):
    """Scales of convolutions: as built or, if `designed`, gamma / beta by the rule."""

    def __init__(self, blocks: Sequence[LibraryBlock], designed: bool):
        super().__init__(blocks)
        self.designed = designed and all(is_normalizer_free(block) for block in blocks)

    def conv(self, layer: nn.Module, a: Activated, scale: float = 1.0) -> Trunk:
        """Follow a map through a convolution, whose scale by design is `scale`."""
        if not isinstance(layer, ScaledStdConv2d | PlainConv2d):
            raise WorkbenchError(
                f"expected_signal covers only the convolutions of workbench.models.layers, got {type(layer).__name__}. "
                "Measure the network with signal_propagation."
            )
        channels, out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        shape: dict[str, Any] = {
            "kernel_size": layer.kernel_size,
            "stride": layer.stride,
            "channels": channels,
            "out": out,
        }
        if self.designed:
            return convolve(a, c=scale**2, **shape)
        if isinstance(layer, PlainConv2d):
            return convolve(a, c=layer.scale**2 * layer.init_gain, centred=False, **shape)
        return convolve(a, c=layer.scale**2 * layer.gain.double().square().mean().item(), **shape)


def gamma_of(fn) -> float:
    """Return gamma for an activation, from the authors' table or else the exact value."""
    return next((constant for known, constant in ACTIVATIONS.values() if known is fn), None) or gamma(fn)


def _row(block: int, stage: int, trunk: Trunk, residual_var: float) -> dict:
    mean_sq = trunk.m**2 + trunk.M
    return {"block": block, "stage": stage, "mean_sq": mean_sq, "var": trunk.V, "residual_var": residual_var}


def _stem(model: nn.Module, scales: _Scales, pixels: Activated) -> Trunk:
    layers = cast(list[nn.Module], list(model.stem) if isinstance(model.stem, nn.ModuleList) else [model.stem])
    later = gamma_of(model.act) if len(layers) > 1 and scales.designed else 1.0
    trunk = scales.conv(layers[0], pixels, gamma_of(model.act) if isinstance(layers[0], TimmConv2d) else 1.0)
    for layer in layers[1:]:
        trunk = scales.conv(layer, activate(model.act, trunk), later)
    return max_pool(trunk) if getattr(model, "pool", False) else trunk


def _block(block: LibraryBlock, h: Trunk, scales: _Scales) -> tuple[Trunk, Trunk]:
    """Follow the trunk through a block. Return the trunk after it and its residual branch."""
    if getattr(block, "post_activation", False):
        raise WorkbenchError(
            "expected_signal does not cover FixUp: its activation after the addition makes the trunk not normal. "
            "Measure the network with signal_propagation."
        )
    if isinstance(getattr(block, "norm0", None), nn.GroupNorm):
        raise WorkbenchError(
            "expected_signal does not cover GroupNorm, which leaves channels with different variances. "
            "Measure the network with signal_propagation."
        )
    inner = gamma_of(block.act) if scales.designed else 1.0
    outer = inner / scales.beta[block]
    a = activate(block.act, normalized(block, "norm0", h))
    out = scales.conv(block.conv0, a, outer)
    out = scales.conv(block.conv1, activate(block.act, normalized(block, "norm1", out)), inner)
    if getattr(block, "conv1b", None) is not None:
        out = scales.conv(block.conv1b, activate(block.act, out), inner)
    out = scales.conv(block.conv2, activate(block.act, normalized(block, "norm2", out)), inner)
    if block.squeeze_excite is not None and not is_normalizer_free(block):
        out = Trunk(out.m / 2, out.M / 4, out.V / 4, out.size, out.R, out.back / 4)  # NF nets double their gates
    if block.is_transition:
        pools = getattr(block, "stride", 1) == 2 and block.conv_shortcut.stride == 1
        shortcut = scales.conv(block.conv_shortcut, avg_pool(a) if pools else a, outer)
    else:
        shortcut = h
    return add(shortcut, out, block.alpha * (block.skip_gain.item() if hasattr(block, "skip_gain") else 1.0)), out


def normalized(block: nn.Module, name: str, h: Trunk) -> Trunk:
    """Return the trunk after a BatchNorm layer; unchanged if the block has no such layer.

    Args:
        block: The block.
        name: Attribute of the BatchNorm layer.
        h: The trunk before it.
    """
    return Trunk(0.0, 0.0, 1.0, h.size, h.R, h.back / h.V) if hasattr(block, name) else h
