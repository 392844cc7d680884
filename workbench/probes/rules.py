"""Rules for every block of any network. They turn a table of signal propagation into faults.

Sound networks pass. The limits allow for:

- linear growth with BatchNorm;
- average pools, which keep a quarter of the variance of white noise;
- the mean after a max-pool;
- residual branches that start at zero.

Networks without residual additions are judged layer by layer. Without shortcuts every layer changes the variance, and
ReLU shifts the means. So the limits allow for four layers with torch's initialisation, which keeps a sixth of the
variance per layer with ReLU.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import pandas as pd

GROWTH = 1.4  # growth of the variance per block; linear growth is slower after three blocks, exponential growth is not
BACKWARD = (
    2.8  # growth of the gradient's variance per block; single strided blocks reach four, but not several in a row
)
RUN = 4  # blocks in a row
HUGE = 100.0  # times the stem's variance, or 1
LOST = 0.1  # share of the stem's variance, with a factor of 1/4 for each stage
SHIFT = 4.0  # squared channel mean over variance; a ReLU after a LayerNorm leads to up to three
LOST_IN_LAYERS = 1e-3  # as LOST
SHIFT_OF_LAYERS = 400.0  # as SHIFT; one part in 400 of a map then depends on the input
DEAD = 0.5  # share of the units that a layer reads
OUTPUT = 300.0  # root mean square of the output; images from 0 to 255 stay below
WHOSE = {"block": "the trunk's", "layer": "its"}
VARIANCE = "draw weights with variance gamma squared / fan-in"


@dataclass(frozen=True)
class Fault:
    """Fault of a network, with its cause and its cure.

    Attributes:
        block: Index of the block, from 1. 0: the stem. None: the whole network. "input" and "head": around the blocks.
        verdict: Kind of fault, such as "grows".
        cause: What is wrong.
        cure: What to do.
    """

    block: int | str | None
    verdict: str
    cause: str
    cure: str


def broken_rules(table: pd.DataFrame, closed: pd.Series, precision: str, input_var: float = math.inf) -> list[Fault]:
    """Find all blocks that break a rule, rule by rule.

    If values are not finite, that is the only fault.

    Args:
        table: Columns stage, mean_sq, var, residual_var, grad_var, dead, peak and, if known, cut_off. Its rows are
            blocks or layers, see `unit_of`.
        closed: Whether each block still adds nothing to the trunk.
        precision: Name of the precision, for the description of faults.
        input_var: Variance of the input; infinite if it has none, such as that of tokens.

    Returns:
        The faults.
    """
    finite = table["var"].map(math.isfinite) & table.peak.map(math.isfinite)
    if not finite[1:].all():
        return [overflows(table, int((~finite[1:]).idxmax()), precision)]
    forward = [*stem(table, input_var), *grows(table), *vanishes(table), *shifts(table, closed), *dies(table)]
    return [*forward, *is_cut_off(table), *gradient_grows(table)]


def unit_of(table: pd.DataFrame) -> str:
    """Return what the rows of a table of `signal_propagation` are: "block" or "layer"."""
    return table.attrs.get("unit", "block")


def overflows(table: pd.DataFrame, i: int, precision: str) -> Fault:
    """Make the fault of values that are not finite from block `i` on."""
    before = table.peak[i - 1]
    reached = f"; the largest value one {unit_of(table)} before is {before:.3g}" if math.isfinite(before) else ""
    ends = ", which ends at 65,504" if precision == "float16" else ""
    return Fault(
        i,
        "overflows",
        f"values are not finite in {precision}{ends}{reached}",
        "reduce the scale of the input, of the weights or (by alpha) of the branches, or compute in bfloat16",
    )


def stem(table: pd.DataFrame, input_var: float) -> list[Fault]:
    """Find a stem that makes its input much larger, or passes on nothing of it."""
    var = cast(float, table["var"][0])
    if var == 0:
        cause = "the first block's input does not vary: weights are zero, or units are dead"
        return [Fault(0, "dead", cause, "check the stem's weights, biases and activation")]
    if var > HUGE * max(1.0, input_var):
        cause = (
            f"the first block's input has variance {var:.3g}, but the network's input has {input_var:.3g}: weights are "
            "drawn too large"
        )
        return [Fault(0, "too large", cause, "draw the stem's weights with variance 1 / fan-in")]
    return []


def unsound_head(values: int, bad: int, size: float, connected: bool, sound: bool) -> list[Fault]:
    """Find a fault of the network's output.

    Args:
        values: Number of output values.
        bad: Number of output values that are not finite.
        size: Root mean square of the others.
        connected: Whether a gradient gets from the output to the input.
        sound: Whether the trunk is sound.

    Returns:
        At most one fault.
    """
    what = "the trunk is sound, but the head" if sound else "the head"
    if bad:
        cause = f"{what} gives {bad:,} of {values:,} values that are not finite"
        cure = "look between the last block and the output for logarithms and roots of values that are not positive, "
        return [Fault("head", "not finite", cause, cure + "divisions by zero, and large factors")]
    if sound and not connected:
        cause = "the trunk is sound, but no gradient gets from the head to it: the head's input is detached"
        return [Fault("head", "cut off", cause, "look for detach(), .data and no_grad() after the last block")]
    if sound and size > OUTPUT:
        cause = f"{what} gives values as large as {size:.3g} (root mean square)"
        return [
            Fault("head", "too large", cause, "draw smaller weights for the last layer, and look for factors after it")
        ]
    return []


def grows(table: pd.DataFrame) -> list[Fault]:
    """Find blocks where the variance multiplies from block to block, or gets huge at once."""
    var, unit = table["var"], unit_of(table)
    ratio = (var / var.shift(1)).tolist()
    flags = in_a_run(ratio, GROWTH) | (var > HUGE * max(1.0, start(table)))
    return [
        Fault(
            i,
            "grows",
            f"{WHOSE[unit]} variance is {var[i]:.3g}, {ratio[i]:.2f} times that of the {unit} before, and "
            f"{var.iloc[-1]:.3g} at the end: {'branches are as large as the trunk, or ' * (unit == 'block')}weights "
            "are drawn too large",
            "multiply each branch by alpha and divide its input by beta, as normfree does, or normalise its input"
            if unit == "block"
            else VARIANCE + ", or normalise",
        )
        for i in _flagged(flags)
    ]


def vanishes(table: pd.DataFrame) -> list[Fault]:
    """Find blocks where variance is lost, beyond the loss by average pools."""
    unit, layers = unit_of(table), unit_of(table) == "layer"
    flags = table["var"] < (LOST_IN_LAYERS if layers else LOST) * start(table) * 0.25 ** (table.stage + 1)
    return [
        Fault(
            i,
            "vanishes",
            f"{WHOSE[unit]} variance is {table['var'][i]:.3g}, but {start(table):.3g} at the start: weights are "
            f"drawn too small, {'a shortcut is scaled down, ' * (not layers)}or an activation lacks its gamma",
            VARIANCE + ", and add shortcuts without a factor" * (not layers),
        )
        for i in _flagged(flags)
    ]


def shifts(table: pd.DataFrame, closed: pd.Series) -> list[Fault]:
    """Find blocks whose channel means outgrow the variance.

    The limit of the first stage allows for means from the stem, such as those of a max-pool. Blocks that still add
    nothing are left out, because the means of their shortcuts are no fault of the design.
    """
    shift, unit = table.mean_sq / table["var"], unit_of(table)
    most = SHIFT if unit == "block" else SHIFT_OF_LAYERS
    allowed = 2 * max(most / 2, shift[0]) if math.isfinite(shift[0]) else most
    limit = table.stage.map(lambda stage: most if stage > 0 else max(most, allowed))
    return [
        Fault(
            i,
            "mean shift",
            f"the squared channel means are {shift[i]:.3g} times the variance: filters with a nonzero mean pass on the "
            f"mean of the activations, {unit} after {unit}",
            "standardise the weights (ScaledStdConv2d), as normfree does, or normalise",
        )
        for i in _flagged((shift > limit) & ~closed)
    ]


def dies(table: pd.DataFrame) -> list[Fault]:
    """Find blocks with a layer most of whose inputs never vary."""
    unit = unit_of(table)
    return [
        Fault(
            i,
            "dead",
            f"{table.dead[i]:.0%} of the units that {'a layer of this block' if unit == 'block' else 'it'} reads never "
            "vary: biases or input means are far below the activation's threshold",
            f"start biases at zero, and check the {unit}s before for a mean shift",
        )
        for i in _flagged(table.dead >= DEAD)
    ]


def is_cut_off(table: pd.DataFrame) -> list[Fault]:
    """Find blocks with a branch or shortcut that no gradient passes, by the column cut_off."""
    ways = "it is detached, made without gradients, or multiplied by a zero that no parameter can change"
    causes = {
        "branch": f"nothing in its branch can learn, because no gradient passes it: {ways}",
        "shortcut": f"no gradient passes its shortcut, so earlier layers learn only through the branches: {ways}",
        "trunk": "no gradient passes it to earlier layers: its input is detached, or made without gradients",
    }
    cut = cast(pd.Series, table.get("cut_off", pd.Series("", table.index)))
    cure = "look for detach(), .data, no_grad() and factors of zero where the block is computed and added"
    return [Fault(i, "cut off", causes[cast(str, cut[i])], cure) for i in _flagged(cut != "")]


def gradient_grows(table: pd.DataFrame) -> list[Fault]:
    """Find blocks where the gradient's variance multiplies on its way back."""
    back, unit = table.grad_var[1:].tolist()[::-1], unit_of(table)
    ratios = [math.nan, *(after / before if before > 0 else math.nan for before, after in pairwise(back))]
    flags = cast(pd.Series, in_a_run(ratios, BACKWARD)[::-1]).reset_index(drop=True)
    return [
        Fault(
            i + 1,
            "gradient grows",
            f"on its way back, the gradient's variance grows by {BACKWARD:g} per {unit} or more over {RUN} {unit}s, to "
            f"{max(back):.3g} times that after the last {unit}",
            "make the branches smaller (alpha), or " * (unit == "block") + VARIANCE,
        )
        for i in flags.index[flags.to_numpy()]
    ]


def in_a_run(ratios: list[float], least: float) -> pd.Series:
    """Mark ratios in a row of at least RUN values that are all at least `least`."""
    flags, count = [False] * len(ratios), 0
    for i, ratio in enumerate(ratios):
        count = count + 1 if ratio >= least else 0
        if count >= RUN:
            flags[i - RUN + 1 : i + 1] = [True] * RUN
    return pd.Series(flags)


def start(table: pd.DataFrame) -> float:
    """Return the variance at the stem, or after the first block if that of the stem is unknown."""
    known = cast(pd.Series, table["var"][table["var"] > 0])
    return float(known.iloc[0]) if len(known) else 0.0


def _flagged(flags: pd.Series) -> list[int]:
    """Return the marked blocks, without the stem."""
    return [i for i in flags.index[flags.to_numpy()] if i > 0]
