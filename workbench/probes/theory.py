"""What signal propagation should show at initialisation, from the architecture alone.

The calculus of single layers is in trunk.py; this is the walk through our families with it. A network can be taken as
it was built, with the constants that its convolutions hold, or as it was designed: with those that alpha and the
activations ask for by the paper's rule, whatever it holds. Where the two part, something was built wrongly.
"""

import math
from dataclasses import replace

import pandas as pd
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.models.activations import ACTIVATIONS, gamma
from workbench.models.layers import PlainConv2d, ScaledStdConv2d
from workbench.models.timm_nets import TimmConv2d
from workbench.probes.signal import COLUMNS, residual_blocks, signal_propagation
from workbench.probes.trunk import Activated, Trunk, activate, add, avg_pool, convolve, max_pool, noise, pixels_of

STATISTICS = ("mean_sq", "var", "residual_var", "grad_var")


def expected_signal(
    model: nn.Module, image_size: int | None = None, *, images: Tensor | None = None, designed: bool = False
) -> pd.DataFrame:
    """The columns of `signal_propagation`, and grad_var of a gradient from N(0, 1) behind the last block; predicted at
    initialisation, for N(0, 1) images or for `images`.

    Args: `image_size` H = W of N(0, 1) images; with it, the taps that zero padding cuts off at the borders are counted.
    `images` (N, C, H, W), normalised as the network gets them: of those, correlations over space and channels are
    carried through the network, which loses less of them than of white noise where a shortcut averages. `designed`
    takes the constants from the rule (gamma of the activation, beta from alpha, gates doubled, weights standardised)
    in normalizer-free networks, instead of those that were built in.
    Knows our families: stems, pooling, scaled-standardised, plain and BatchNorm nets in training mode. BatchNorm is
    taken as exact. Squeeze-excite gates are taken at 1/2, their value for pooled zeros. Raises: WorkbenchError for
    other models.
    """
    if image_size is not None and not (isinstance(image_size, int) and image_size >= 1):
        raise WorkbenchError(f"`image_size` (={image_size!r}) must be a whole number of pixels a side, at least 1.")
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
    """`signal_propagation` beside `expected_signal`: its columns, expected_mean_sq, expected_var,
    expected_residual_var, expected_grad_var, and the deviations of the variances, measured / expected - 1, as
    var_deviation.

    Args: `natural` predicts for `x` as it is; else for N(0, 1) images of its size. `measured` as of signal_propagation.
    """
    expected = expected_signal(model, images=x) if natural else expected_signal(model, x.shape[-1])
    return beside(signal_propagation(model, x, **measured), expected)


def beside(measured: pd.DataFrame, expected: pd.DataFrame) -> pd.DataFrame:
    """The measured table with the expected columns and the relative deviations."""
    table = measured.join(expected[list(STATISTICS)].add_prefix("expected_"))
    for name in STATISTICS[1:]:
        if name in table:
            table[f"{name}_deviation"] = table[name] / table[f"expected_{name}"] - 1
    return table


def is_normalizer_free(block: nn.Module) -> bool:
    """Whether a block of ours has an alpha of its own, and so is one of h + alpha f(h / beta)."""
    return "alpha" in vars(block)


class Design:
    """The paper's rule for these blocks: beta, the expected deviation of the trunk that a block gets, {block: beta}."""

    def __init__(self, blocks: list[nn.Module]):
        self.beta: dict[nn.Module, float] = {}
        variance = 1.0
        for i, block in enumerate(blocks):
            self.beta[block] = math.sqrt(variance)
            first = i == 0 or block.stage != blocks[i - 1].stage
            variance = (1.0 if first else variance) + block.alpha**2


class _Scales(Design):
    """What a convolution multiplies its weights by: what it holds or, `designed`, gamma / beta by the rule."""

    def __init__(self, blocks: list[nn.Module], designed: bool):
        super().__init__(blocks)
        self.designed = designed and all(is_normalizer_free(block) for block in blocks)

    def conv(self, layer: nn.Module, a: Activated, scale: float = 1.0) -> Trunk:
        """Through `layer`, whose design asks for `scale`."""
        if not isinstance(layer, ScaledStdConv2d | PlainConv2d):
            raise WorkbenchError(
                f"expected_signal knows the convolutions of workbench.models.layers, but met {type(layer).__name__}."
            )
        channels, out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        shape = {"kernel_size": layer.kernel_size, "stride": layer.stride, "channels": channels, "out": out}
        if self.designed:
            return convolve(a, c=scale**2, **shape)
        if isinstance(layer, PlainConv2d):
            return convolve(a, c=layer.scale**2 * layer.init_gain, centred=False, **shape)
        return convolve(a, c=layer.scale**2 * layer.gain.double().square().mean().item(), **shape)


def gamma_of(fn) -> float:
    """The gamma that this library uses for an activation: of the authors' table where it has it, else exact."""
    return next((constant for known, constant in ACTIVATIONS.values() if known is fn), None) or gamma(fn)


def _row(block: int, stage: int, trunk: Trunk, residual_var: float) -> dict:
    mean_sq = trunk.m**2 + trunk.M
    return {"block": block, "stage": stage, "mean_sq": mean_sq, "var": trunk.V, "residual_var": residual_var}


def _stem(model: nn.Module, scales: _Scales, pixels: Activated) -> Trunk:
    layers = list(model.stem) if isinstance(model.stem, nn.ModuleList) else [model.stem]
    later = gamma_of(model.act) if len(layers) > 1 and scales.designed else 1.0
    trunk = scales.conv(layers[0], pixels, gamma_of(model.act) if isinstance(layers[0], TimmConv2d) else 1.0)
    for layer in layers[1:]:
        trunk = scales.conv(layer, activate(model.act, trunk), later)
    return max_pool(trunk) if getattr(model, "pool", False) else trunk


def _block(block: nn.Module, h: Trunk, scales: _Scales) -> tuple[Trunk, Trunk]:
    """The trunk after the block, and its residual branch."""
    if getattr(block, "post_activation", False):
        raise WorkbenchError(
            "expected_signal follows pre-activation blocks; FixUp's activation comes after the addition, "
            "and leaves a trunk that is not normal: measure it with signal_propagation."
        )
    if isinstance(getattr(block, "norm0", None), nn.GroupNorm):
        raise WorkbenchError(
            "expected_signal takes BatchNorm as exact; GroupNorm leaves channels of different variance: "
            "measure it with signal_propagation."
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
        out = Trunk(out.m / 2, out.M / 4, out.V / 4, out.size, out.R, out.back / 4)  # the NF nets double their gates
    if block.is_transition:
        pools = getattr(block, "stride", 1) == 2 and block.conv_shortcut.stride == 1
        shortcut = scales.conv(block.conv_shortcut, avg_pool(a) if pools else a, outer)
    else:
        shortcut = h
    return add(shortcut, out, block.alpha * (block.skip_gain.item() if hasattr(block, "skip_gain") else 1.0)), out


def normalized(block: nn.Module, name: str, h: Trunk) -> Trunk:
    """After BatchNorm every channel has mean 0 and variance 1; without, the trunk itself."""
    return Trunk(0.0, 0.0, 1.0, h.size, h.R, h.back / h.V) if hasattr(block, name) else h
