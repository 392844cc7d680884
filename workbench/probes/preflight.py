"""Pre-flight: is a network, as it stands before its first step, one through which signals travel?

Three questions, in the order of what they need. Is it built as it was designed (networks of ours; exact)? Does what is
measured follow what its architecture leads to (networks of ours; within sampling error)? Do the variances, forward and
backward, keep their scale from block to block, the means stay small, the units live, the numbers stay finite (any
network)? The limits of the last are set so that sound networks pass: BatchNorm's linear growth, average pools that take
a quarter of white noise, residual branches that start at zero. Around the blocks: is the input normalised, and does the
head give finite numbers of sane size?
"""

import contextlib
import math
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from workbench.errors import WorkbenchError, unknown
from workbench.models.layers import ScaledStdConv2d
from workbench.normfree.standardized_convs import BranchGain
from workbench.probes.cuts import is_connected
from workbench.probes.diagnosis import construction_faults, weight_faults
from workbench.probes.input_checks import checked, cure, described, is_usual, normalised, not_normalised, scale
from workbench.probes.origin import first_not_finite, their_line
from workbench.probes.rules import HUGE, Fault, broken_rules, start, unsound_head
from workbench.probes.shared import left_unchanged, refuse_lazy
from workbench.probes.signal import in_training, library_blocks, signal_propagation
from workbench.probes.theory import beside, expected_signal, is_normalizer_free

ENOUGH = 16 * 64**2  # pixels of noise, so that maps 64 times as small in both directions still hold 16 values a channel
PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Preflight:
    """What was found: `table` as of signal_propagation with a column `verdict` (and expected ones where there is a
    theory), and `faults`, the first block of each kind with its cause and cure."""

    name: str
    table: pd.DataFrame
    faults: list[Fault]

    @property
    def ok(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        blocks = len(self.table) - 1
        if self.ok:
            kinds = self.table.verdict[1:].value_counts()
            return f"{self.name} is sound: {', '.join(f'{n} of {blocks} blocks: {kind}' for kind, n in kinds.items())}."
        return "\n".join(
            [
                f"{self.name} has {len(self.faults)} fault{'s' * (len(self.faults) > 1)}:",
                *(f"- {self.say(f)}" for f in self.faults),
            ]
        )

    def say(self, fault: Fault) -> str:
        """One fault as a sentence: where, what, why, and the cure."""
        where = fault.block if isinstance(fault.block, str) else {None: "network", 0: "stem"}.get(fault.block)
        if where is None:
            path = self.table.path[fault.block]
            where = f"block {fault.block}" + (f" ({path})" if path else "")
        return f"{where}: {fault.verdict}: {fault.cause}. Cure: {fault.cure}."


def preflight(
    model: nn.Module,
    x: Tensor | Sequence[Tensor],
    *,
    precision: str = "float32",
    channels: int | None = None,
    blocks: Sequence[str] | None = None,
) -> Preflight:
    """Judges `model` at initialisation on `x` as it gets it, in training mode without dropout: images (N, C, H, W),
    features (N, C), whole numbers such as tokens (N, T), or a tuple of tensors for a model called as model(*x).

    Measured forward and backward (a gradient from N(0, 1) behind the last block), with branches that start at zero
    opened where they have a skip gain; networks of ours are held against the theory on N(0, 1) images of the same
    shape. An input that is not normalised and spoils what is measured is named, and the rest is measured on it
    normalised, channel by channel. Args: `precision` float32, or float16 and bfloat16 by autocast; `channels` and
    `blocks` as of signal_propagation. The model is left as found.
    Raises: WorkbenchError for an unknown precision, an x that the model cannot take (with the line of the user's code
    that breaks off), and as signal_propagation.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    refuse_lazy(model)
    inputs = checked(x)
    name = getattr(model, "recipe", {}).get("name", type(model).__name__)
    how = {"precision": precision, "channels": channels, "blocks": blocks}
    with left_unchanged(model), in_training(model), _opened(model):
        report = _judged(model, inputs, **how)
        mean, std, first = scale(inputs)
        reaches = start(report.table) > HUGE
        if not is_usual(mean, std) and (report.faults or reaches):
            inputs = [normalised(t, channels) if t is first else t for t in inputs]
            again = _judged(model, inputs, **how)
            if reaches or len(again.faults) < len(report.faults):
                report = replace(again, faults=[not_normalised(mean, std), *again.faults])
    return replace(report, name=name)


def _judged(
    model: nn.Module, inputs: list[Tensor], *, precision: str, channels: int | None, blocks: Sequence[str] | None
) -> Preflight:
    given, connected = [], []

    def keep(module: nn.Module, args: tuple, out: object) -> None:
        if not connected:
            outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()]
            given.extend(t.detach() for t in outputs)
            connected.append(is_connected(outputs, args))

    x = inputs[0]
    asked = {"channels": channels, "blocks": blocks, "backward": True, "dead": True, "peak": True, "cut_off": True}
    hook = model.register_forward_hook(keep)
    try:
        with _in(precision, x):
            table = _measured(model, inputs, **asked)
    finally:
        hook.remove()
    built = _quietly(construction_faults, model, x.shape[-1]) or []
    table, off = _against_theory(model, x, table) if blocks is None else (table, [])
    closed = _closed(model, table)
    faults = weight_faults(model) + (built or off)  # what is built wrongly leads wherever it leads
    _, std, first = scale(inputs)
    faults += broken_rules(table, closed, precision, math.inf if first is None else std**2)
    if not any(fault.verdict == "overflows" for fault in faults):
        faults += _head(given, connected[0], not faults)
    if any(fault.verdict in ("overflows", "not finite") for fault in faults):
        with _in(precision, x):
            faults = _with_origin(model, inputs, table, faults)
    table["verdict"] = _verdicts(table, faults, closed)
    return Preflight("", table, _first_of_each(faults))


def _in(precision: str, x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, PRECISIONS[precision], enabled=precision != "float32")


def _head(given: list[Tensor], connected: bool, sound: bool) -> list[Fault]:
    """What is wrong with the network's outputs."""
    values = torch.cat([t.flatten().cpu().double() for t in given]) if given else torch.zeros(1)
    finite = values[values.isfinite()]
    size = finite.square().mean().sqrt().item() if len(finite) else 0.0
    return unsound_head(len(values), len(values) - len(finite), size, connected, sound)


def _with_origin(model: nn.Module, inputs: list[Tensor], table: pd.DataFrame, faults: list[Fault]) -> list[Fault]:
    """The same faults, with the operation that made the first number that is not finite; a stem's told as such."""
    origin = first_not_finite(model, inputs)
    if origin is None:
        return faults
    traced = []
    for fault in faults:
        if fault.verdict in ("overflows", "not finite"):
            fault = replace(fault, cause=f"{fault.cause}; first by {origin.text}")
        if fault.verdict == "overflows" and fault.block == 1 and table.path[1] and table.path[1] not in origin.modules:
            fault = replace(fault, block=0)
        traced.append(fault)
    return traced


def _measured(model: nn.Module, inputs: list[Tensor], **asked) -> pd.DataFrame:
    try:
        return signal_propagation(model, tuple(inputs), **asked)
    except WorkbenchError:
        raise
    except Exception as error:  # whatever a network's forward pass does
        message = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        line = their_line(traceback.extract_tb(error.__traceback__))
        where = f"; {line}" if line else ""
        raise WorkbenchError(
            f"the model does not run on {described(inputs)} ({type(error).__name__}: {message}{where}): "
            f"{cure(model, inputs)}."
        ) from error


@contextlib.contextmanager
def _opened(model: nn.Module) -> Iterator[None]:
    """Normalizer-free branches that start at zero, by a skip gain or a standardised convolution's gain, set to one."""
    gains = [
        p for n, p in model.named_parameters() if n.rpartition(".")[2] == "skip_gain" and _scales_by_alpha(model, n)
    ]
    gains += [m.gain for m in model.modules() if isinstance(m, ScaledStdConv2d)]
    closed = [p for p in gains if not p.detach().any()]
    try:
        with torch.no_grad():
            for p in closed:
                p.fill_(1.0)
        yield
    finally:
        with torch.no_grad():
            for p in closed:
                p.zero_()


def _scales_by_alpha(model: nn.Module, name: str) -> bool:
    """Whether what holds this skip gain also keeps the branch small: by an alpha of its own, or as `normfree` does."""
    holder = model.get_submodule(name.rpartition(".")[0])
    return "alpha" in vars(holder) or isinstance(holder, BranchGain)


def _quietly(theory, *args):
    """What the theory says, or None where there is none for this network."""
    try:
        return theory(*args)
    except WorkbenchError:
        return None


def _against_theory(model: nn.Module, x: Tensor, table: pd.DataFrame) -> tuple[pd.DataFrame, list[Fault]]:
    """The table with expected columns of white noise, and the blocks that leave them by more than sampling explains."""
    blocks = library_blocks(model)
    held = blocks and all(is_normalizer_free(block) or hasattr(block, "norm0") for block in blocks)
    expected = _quietly(expected_signal, model, x.shape[-1]) if held else None
    if expected is None:  # of plain networks, too, what is expected has no use: few draws decide which units live
        return table, []
    n = max(len(x), math.ceil(ENOUGH / x.shape[-1] ** 2))
    white = torch.randn(n, *x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)
    compared = beside(signal_propagation(model, white), expected)
    table["expected_var"], table["expected_residual_var"] = expected["var"], expected.residual_var
    table["var_deviation"], table["residual_var_deviation"] = compared.var_deviation, compared.residual_var_deviation
    limits = _sampling_limits(model)
    faults = []
    for column in ("residual_var", "var"):
        logs = (1 + compared[f"{column}_deviation"][1:]).map(
            lambda ratio: abs(math.log(ratio)) if ratio > 0 else math.inf
        )
        off = logs > limits[column]
        if off.any():
            faults.append(_off_theory(int(off.idxmax()), column, compared))
    return table, sorted(faults, key=lambda fault: fault.block)[:1]


def _sampling_limits(model: nn.Module) -> dict[str, float]:
    """How far a logarithm of a variance may be off: narrow layers draw few filters, and each its own variance.

    Measured over sound networks of this library, widths from 8, six draws each: the largest deviations were 0.26 and
    0.62 (8 channels), 0.06 and 0.07 (64).
    """
    narrowest = min(m.out_channels for m in model.modules() if hasattr(m, "fan_in"))
    return {"var": 0.1 + 1.3 / math.sqrt(narrowest), "residual_var": 0.15 + 2 / math.sqrt(narrowest)}


def _off_theory(i: int, column: str, compared: pd.DataFrame) -> Fault:
    measured, expected = compared[column][i], compared[f"expected_{column}"][i]
    what = "the trunk's variance" if column == "var" else "the branch's variance"
    ratio = measured / expected
    if column == "residual_var" and 0.15 < ratio < 0.4:
        guess = "a quarter is what squeeze-excite without its factor 2 leaves"
    elif column == "var" and ratio > 1:
        guess = "a branch is added without its alpha, or an earlier one is too large"
    elif column == "var":
        guess = "the shortcut is scaled down, or units are dead"
    else:
        guess = "an activation or a weight in the branch is not what the architecture says"
    return Fault(
        i,
        "off theory",
        f"{what} is {measured:.3g} where the architecture leads to {expected:.3g} ({guess})",
        "compare the block's forward pass with h + alpha * skip_gain * f(h / beta)",
    )


def _closed(model: nn.Module, table: pd.DataFrame) -> pd.Series:
    """Which blocks add nothing yet: their branch is zero, or a skip gain of a network of ours makes it so."""
    closed = table.residual_var == 0
    for i, path in table.path.items():
        gain = getattr(model.get_submodule(path), "skip_gain", None)
        closed[i] = closed[i] or (gain is not None and not gain.detach().any())
    return closed


def _verdicts(table: pd.DataFrame, faults: list[Fault], closed: pd.Series) -> list[str]:
    theory = "expected_var" in table
    named = {f.block: f.verdict for f in reversed(faults)}
    sound = ["starts as its shortcut" if c else "matches theory" if theory else "sound" for c in closed]
    return [named.get(0, ""), *(named.get(i, sound[i]) for i in range(1, len(table)))]


def _first_of_each(faults: list[Fault]) -> list[Fault]:
    kinds: dict[tuple, Fault] = {}
    for fault in faults:
        around = fault.block if fault.block in ("input", 0, "head") else None
        kinds.setdefault((fault.verdict, around), fault)
    return list(kinds.values())
