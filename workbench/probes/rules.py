"""What any network must keep to, block by block, whatever it is made of; a table of signal propagation in, faults out.

The limits are set so that sound networks pass: BatchNorm's linear growth, average pools that take a quarter of white
noise, the mean that a max-pool leaves, residual branches that start at zero.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

GROWTH = 1.4  # of the variance a block; linear growth falls below it after three blocks, exponential stays above
BACKWARD = 2.8  # of the gradient's variance a block: strided blocks alone change it by up to four, but not in a row
RUN = 4  # blocks in a row
HUGE = 100.0  # times the stem's variance, or 1
LOST = 0.1  # of the stem's variance, after a quarter for each stage
SHIFT = 4.0  # squared channel mean over variance; a LayerNorm whose output goes through ReLU has up to three
DEAD = 0.5  # share of the units that a layer reads
OUTPUT = 300.0  # root mean square of what the network gives: images of 0 to 255 stay below


@dataclass(frozen=True)
class Fault:
    """What is wrong with one block (its index counts from 1; 0: the stem; None: the whole network), or with what is
    around the blocks ("input", "head"), and what would mend it."""

    block: int | str | None
    verdict: str
    cause: str
    cure: str


def broken_rules(table: pd.DataFrame, closed: pd.Series, precision: str, input_var: float = math.inf) -> list[Fault]:
    """Every block that breaks a rule, rule by rule. Columns: stage, mean_sq, var, residual_var, grad_var, dead, peak;
    `closed` says which blocks add nothing yet; `input_var` the variance of the input, infinite where it has none, as of
    tokens. Where values are not finite, that is the one fault."""
    finite = table["var"].map(math.isfinite) & table.peak.map(math.isfinite)
    if not finite[1:].all():
        return [overflows(table, int((~finite[1:]).idxmax()), precision)]
    forward = [*stem(table, input_var), *grows(table), *vanishes(table), *shifts(table, closed), *dies(table)]
    return [*forward, *is_cut_off(table), *gradient_grows(table)]


def overflows(table: pd.DataFrame, i: int, precision: str) -> Fault:
    """Values that are not finite, from block `i` on."""
    before = table.peak[i - 1]
    reached = f"; the largest value one block before is {before:.3g}" if math.isfinite(before) else ""
    ends = ", which ends at 65,504" if precision == "float16" else ""
    return Fault(
        i,
        "overflows",
        f"values are not finite in {precision}{ends}{reached}",
        "bring the scale down, of the input, the weights or (by alpha) the branches, or compute in bfloat16",
    )


def stem(table: pd.DataFrame, input_var: float) -> list[Fault]:
    """A stem that multiplies its input, or passes nothing of it on."""
    var = table["var"][0]
    if var == 0:
        cause = "what the first block gets does not vary: weights of zero, or units that are dead"
        return [Fault(0, "dead", cause, "look at the stem's weights, biases and activation")]
    if var > HUGE * max(1.0, input_var):
        cause = f"what the first block gets has variance {var:.3g}, the input {input_var:.3g}: weights drawn too large"
        return [Fault(0, "too large", cause, "draw the stem's weights with variance 1 / fan-in")]
    return []


def unsound_head(values: int, bad: int, size: float, connected: bool, sound: bool) -> list[Fault]:
    """What the network gives at last: `bad` of so many values are not finite, `size` is the root mean square of the
    others, `connected` whether a gradient gets from them to the input; `sound` whether the trunk is."""
    what = "the trunk is sound, but the head" if sound else "the head"
    if bad:
        cause = f"{what} gives {bad:,} of {values:,} values that are no finite numbers"
        cure = "look between the last block and the output for logarithms and roots of what is not positive, "
        return [Fault("head", "not finite", cause, cure + "divisions by zero, and factors that are too large")]
    if sound and not connected:
        cause = "the trunk is sound, but no gradient gets from the head to it: what the head reads is detached"
        return [Fault("head", "cut off", cause, "look for detach(), .data and no_grad() behind the last block")]
    if sound and size > OUTPUT:
        cause = f"{what} gives values as large as {size:.3g} (root mean square)"
        return [
            Fault("head", "too large", cause, "draw the last layer's weights smaller, and look for factors behind it")
        ]
    return []


def grows(table: pd.DataFrame) -> list[Fault]:
    """A variance that multiplies from block to block, or gets huge at once."""
    var = table["var"]
    ratio = (var / var.shift(1)).tolist()
    flags = in_a_run(ratio, GROWTH) | (var > HUGE * max(1.0, start(table)))
    return [
        Fault(
            i,
            "grows",
            f"the trunk's variance comes to {var[i]:.3g}, {ratio[i]:.2f} times that of the block before, and to "
            f"{var.iloc[-1]:.3g} at the end: branches as large as the trunk, which nothing holds down, or weights "
            "drawn too large",
            "add each branch times alpha and divide its input by beta (normfree does), or normalise before it",
        )
        for i in _flagged(flags)
    ]


def vanishes(table: pd.DataFrame) -> list[Fault]:
    """A variance that is lost, beyond what average pools take."""
    flags = table["var"] < LOST * start(table) * 0.25 ** (table.stage + 1)
    return [
        Fault(
            i,
            "vanishes",
            f"the trunk's variance has fallen to {table['var'][i]:.3g} from {start(table):.3g} at the start: weights "
            "drawn too small, a shortcut scaled down, or an activation without its gamma",
            "draw weights with variance gamma squared / fan-in, and add the shortcut as it is",
        )
        for i in _flagged(flags)
    ]


def shifts(table: pd.DataFrame, closed: pd.Series) -> list[Fault]:
    """Channel means that outgrow the variance. In the first stage the stem's own, as of a max-pool, are allowed for;
    where no branch adds anything yet, the shortcuts' are no fault of the design."""
    shift = table.mean_sq / table["var"]
    allowed = 2 * max(SHIFT / 2, shift[0]) if math.isfinite(shift[0]) else SHIFT
    limit = table.stage.map(lambda stage: SHIFT if stage > 0 else max(SHIFT, allowed))
    return [
        Fault(
            i,
            "mean shift",
            f"the squared channel means are {shift[i]:.3g} times the variance: filters whose own mean is not zero let "
            "the mean of the activations through, block after block",
            "standardise the weights (ScaledStdConv2d; normfree does), or normalise",
        )
        for i in _flagged((shift > limit) & ~closed)
    ]


def dies(table: pd.DataFrame) -> list[Fault]:
    """Layers most of whose inputs never vary."""
    return [
        Fault(
            i,
            "dead",
            f"{table.dead[i]:.0%} of the units that a layer of this block reads never vary: biases, or means of what "
            "comes in, far below the activation's threshold",
            "start biases at zero, and look at the mean shift of the blocks before",
        )
        for i in _flagged(table.dead >= DEAD)
    ]


def is_cut_off(table: pd.DataFrame) -> list[Fault]:
    """Blocks with a branch, or a shortcut, that no gradient passes. Column: cut_off."""
    ways = "it is detached, made without gradients, or multiplied by a zero that no parameter can change"
    causes = {
        "branch": f"nothing in its branch can learn, for no gradient passes it: {ways}",
        "shortcut": f"no gradient passes its shortcut, so what comes before learns by the branches alone: {ways}",
        "trunk": "no gradient passes it to what comes before: what it reads is detached, or made without gradients",
    }
    cut = table.get("cut_off", pd.Series("", table.index))
    cure = "look for detach(), .data, no_grad() and factors of zero where the block is computed and added"
    return [Fault(i, "cut off", causes[cut[i]], cure) for i in _flagged(cut != "")]


def gradient_grows(table: pd.DataFrame) -> list[Fault]:
    """A gradient whose variance multiplies from the last block to the first."""
    back = table.grad_var[1:].tolist()[::-1]
    ratios = [math.nan, *(after / before if before > 0 else math.nan for before, after in pairwise(back))]
    flags = in_a_run(ratios, BACKWARD)[::-1].reset_index(drop=True)
    return [
        Fault(
            i + 1,
            "gradient grows",
            f"the gradient's variance, going back, grows {BACKWARD:g} times a block or more over {RUN} blocks, to "
            f"{max(back):.3g} times that behind the last",
            "make the branches smaller (alpha), or draw weights with variance gamma squared / fan-in",
        )
        for i in flags.index[flags]
    ]


def in_a_run(ratios: list[float], least: float) -> pd.Series:
    """Which ratios are part of RUN or more in a row that are all at least so large."""
    flags, count = [False] * len(ratios), 0
    for i, ratio in enumerate(ratios):
        count = count + 1 if ratio >= least else 0
        if count >= RUN:
            flags[i - RUN + 1 : i + 1] = [True] * RUN
    return pd.Series(flags)


def start(table: pd.DataFrame) -> float:
    """The variance at the stem; of the first block where the stem's is not known."""
    known = table["var"][table["var"] > 0]
    return float(known.iloc[0]) if len(known) else 0.0


def _flagged(flags: pd.Series) -> list[int]:
    """The blocks, without the stem."""
    return [i for i in flags.index[flags] if i > 0]
