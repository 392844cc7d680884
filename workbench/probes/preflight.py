"""Pre-flight: check before the first step whether signals pass through a network.

1. Do the network's constants equal those of its design? (Networks of this library; exact.)
2. Do the measured variances agree with the theory? (Networks of this library; within sampling error.)
3. Do variances, forward and backward, keep their scale from block to block? Do means stay small, units alive and
   numbers finite? (Any network; see `rules`. Networks without residual additions go layer by layer.)
4. Is the input normalised, and does the head give finite numbers of a usual size?
"""

import contextlib
import math
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

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
from workbench.probes.origin import first_not_finite, user_line
from workbench.probes.rules import HUGE, Fault, broken_rules, start, unit_of, unsound_head
from workbench.probes.shared import left_unchanged, refuse_lazy
from workbench.probes.signal import in_training, library_blocks, signal_propagation
from workbench.probes.theory import expected_signal, is_normalizer_free, with_expected

ENOUGH = 16 * 64**2  # pixels of noise; maps that are 64 times smaller in both directions still hold 16 values a channel
LAYERS = (
    "It adds no residual branches, so its layers are judged: each convolution and each matrix product, with the norm "
    "right behind it. The output layer and layers behind a global pool are left out, unless there are no others."
)
PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Preflight:
    """Result of a pre-flight.

    Attributes:
        name: Name of the network.
        table: Table of `signal_propagation` with a column `verdict`, one row per block or layer. Networks with a theory
            have columns of expected values, too.
        faults: The first fault of each kind.
    """

    name: str
    table: pd.DataFrame
    faults: list[Fault]

    @property
    def ok(self) -> bool:
        """Whether the network has no faults."""
        return not self.faults

    def __str__(self) -> str:
        count, unit = len(self.table) - 1, unit_of(self.table)
        if self.ok:
            kinds = self.table.verdict[1:].value_counts()
            shown = ", ".join(f"{n} of {count} {unit}{'s' * (count > 1)}: {kind}" for kind, n in kinds.items())
            lines = [f"{self.name} is sound: {shown}."]
        else:
            lines = [
                f"{self.name} has {len(self.faults)} fault{'s' * (len(self.faults) > 1)}:",
                *(f"- {self.say(f)}" for f in self.faults),
            ]
        return "\n".join([*lines, *[LAYERS] * (unit == "layer")])

    def say(self, fault: Fault) -> str:
        """Describe one fault: where it is, its kind, its cause and its cure."""
        where = fault.block if isinstance(fault.block, str) else {None: "network", 0: "stem"}.get(fault.block)
        if where is None:
            path = self.table.path[fault.block]
            where = f"{unit_of(self.table)} {fault.block}" + (f" ({path})" if path else "")
        return f"{where}: {fault.verdict}: {fault.cause}. Cure: {fault.cure}."


def preflight(
    model: nn.Module,
    x: Tensor | Sequence[Tensor],
    *,
    precision: str = "float32",
    channels: int | None = None,
    blocks: Sequence[str] | None = None,
) -> Preflight:
    """Check a network at initialisation, in training mode without dropout.

    The signal is measured forward and backward, with a gradient from N(0, 1) after the last block. Branches that start
    at zero by a skip gain are opened. Networks of this library are compared with the theory on N(0, 1) images of the
    same shape. If an input that is not normalised disturbs the measurement, the report names it. All other faults are
    then measured on the input after normalisation, channel by channel. The model stays unchanged.

    Args:
        model: The network.
        x: The network's input: images (N, C, H, W), features (N, C) or whole numbers such as tokens (N, T). Give a
            tuple of tensors for a model that is called as model(*x).
        precision: "float32", or "float16" or "bfloat16" by autocast.
        channels: Dimension of the channels, as in `signal_propagation`.
        blocks: Names of the modules whose outputs are the trunk, as in `signal_propagation`.

    Returns:
        The table and the faults.

    Raises:
        WorkbenchError: If the precision is unknown or the model cannot take `x`. In the last case the message gives the
            failing line of the user's code. Also as in `signal_propagation`.
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
    head_values, connected = [], []

    def keep(module: nn.Module, args: tuple, out: object) -> None:
        if not connected:
            outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()]
            head_values.extend(t.detach() for t in outputs)
            connected.append(is_connected(outputs, args))

    x = inputs[0]
    options = {"channels": channels, "blocks": blocks, "backward": True, "dead": True, "peak": True, "cut_off": True}
    hook = model.register_forward_hook(keep)
    try:
        with _in(precision, x):
            table = _measured(model, inputs, **options)
    finally:
        hook.remove()
    built = _quietly(construction_faults, model, x.shape[-1]) or []
    table, off = _against_theory(model, x, table) if blocks is None else (table, [])
    closed = _closed(model, table)
    faults = weight_faults(model) + (built or off)  # a wrong constant explains deviations from the theory
    _, std, first = scale(inputs)
    faults += broken_rules(table, closed, precision, math.inf if first is None else std**2)
    if not any(fault.verdict == "overflows" for fault in faults):
        faults += _head(head_values, connected[0], not faults)
    if any(fault.verdict in ("overflows", "not finite") for fault in faults):
        with _in(precision, x):
            faults = _with_origin(model, inputs, table, faults)
    table["verdict"] = _verdicts(table, faults, closed)
    return Preflight("", table, _first_of_each(faults))


def _in(precision: str, x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, PRECISIONS[precision], enabled=precision != "float32")


def _head(outputs: list[Tensor], connected: bool, sound: bool) -> list[Fault]:
    """Find a fault of the network's outputs."""
    values = torch.cat([t.flatten().cpu().double() for t in outputs]) if outputs else torch.zeros(1)
    finite = values[values.isfinite()]
    size = finite.square().mean().sqrt().item() if len(finite) else 0.0
    return unsound_head(len(values), len(values) - len(finite), size, connected, sound)


def _with_origin(model: nn.Module, inputs: list[Tensor], table: pd.DataFrame, faults: list[Fault]) -> list[Fault]:
    """Add to the faults the operation that made the first number that is not finite.

    If it is in the stem, the fault moves there.
    """
    origin = first_not_finite(model, inputs)
    if origin is None:
        return faults
    traced = []
    for fault in faults:
        if fault.verdict in ("overflows", "not finite"):
            fault = replace(fault, cause=f"{fault.cause}; first by {origin.text}")
        first = unit_of(table) == "block" and fault.block == 1 and table.path[1]
        if fault.verdict == "overflows" and first and table.path[1] not in origin.modules:
            fault = replace(fault, block=0)
        traced.append(fault)
    return traced


def _measured(model: nn.Module, inputs: list[Tensor], **options) -> pd.DataFrame:
    try:
        return signal_propagation(model, tuple(inputs), **options)
    except WorkbenchError:
        raise
    except Exception as error:  # a network's forward pass can raise anything
        message = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        line = user_line(traceback.extract_tb(error.__traceback__))
        where = f"; {line}" if line else ""
        raise WorkbenchError(
            f"the model does not run on {described(inputs)} ({type(error).__name__}: {message}{where}). "
            f"{cure(model, inputs)}."
        ) from error


@contextlib.contextmanager
def _opened(model: nn.Module) -> Iterator[None]:
    """Within the context, set zero gains of normalizer-free branches to one.

    These are skip gains and gains of standardised convolutions.
    """
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
    """Return whether the owner of this skip gain also scales its branch, by alpha or `normfree`."""
    holder = model.get_submodule(name.rpartition(".")[0])
    return "alpha" in vars(holder) or isinstance(holder, BranchGain)


def _quietly(theory, *args):
    """Return the result of the theory, or None if it does not cover this network."""
    try:
        return theory(*args)
    except WorkbenchError:
        return None


def _against_theory(model: nn.Module, x: Tensor, table: pd.DataFrame) -> tuple[pd.DataFrame, list[Fault]]:
    """Add columns expected for white noise, and find the first block that deviates.

    Deviations within sampling error do not count.
    """
    blocks = library_blocks(model)
    comparable = blocks and all(is_normalizer_free(block) or hasattr(block, "norm0") for block in blocks)
    expected = _quietly(expected_signal, model, x.shape[-1]) if comparable else None
    if expected is None:  # plain networks are left out, too, because chance decides which of their units live
        return table, []
    n = max(len(x), math.ceil(ENOUGH / x.shape[-1] ** 2))
    white = torch.randn(n, *x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)
    compared = with_expected(signal_propagation(model, white), expected)
    table["expected_var"], table["expected_residual_var"] = expected["var"], expected.residual_var
    table["var_deviation"], table["residual_var_deviation"] = compared.var_deviation, compared.residual_var_deviation
    limits = _sampling_limits(model)
    faults = []
    for column in ("residual_var", "var"):
        ratios = cast(pd.Series, 1 + compared[f"{column}_deviation"][1:])
        off = ratios.map(lambda ratio: abs(math.log(ratio)) if ratio > 0 else math.inf) > limits[column]
        if off.any():
            faults.append(_off_theory(int(cast(int, off.idxmax())), column, compared))
    return table, sorted(faults, key=lambda fault: fault.block)[:1]


def _sampling_limits(model: nn.Module) -> dict[str, float]:
    """Return by column how far the logarithm of a variance may deviate.

    Narrow layers draw few filters, and each filter has another variance. Measured over six draws of sound networks of
    this library, the largest deviations of `var` and `residual_var` were:

    - 0.26 and 0.62 with 8 channels;
    - 0.06 and 0.07 with 64 channels.
    """
    narrowest = min(cast(int, m.out_channels) for m in model.modules() if hasattr(m, "fan_in"))
    return {"var": 0.1 + 1.3 / math.sqrt(narrowest), "residual_var": 0.15 + 2 / math.sqrt(narrowest)}


def _off_theory(i: int, column: str, compared: pd.DataFrame) -> Fault:
    measured, expected = cast(float, compared[column][i]), cast(float, compared[f"expected_{column}"][i])
    what = "the trunk's variance" if column == "var" else "the branch's variance"
    ratio = measured / expected
    if column == "residual_var" and 0.15 < ratio < 0.4:
        guess = "squeeze-excite without its factor 2 leaves a quarter"
    elif column == "var" and ratio > 1:
        guess = "a branch is added without its alpha, or an earlier branch is too large"
    elif column == "var":
        guess = "the shortcut is scaled down, or units are dead"
    else:
        guess = "an activation or a weight in the branch differs from the architecture"
    return Fault(
        i,
        "off theory",
        f"{what} is {measured:.3g}, but the architecture leads to {expected:.3g} ({guess})",
        "compare the block's forward pass with h + alpha * skip_gain * f(h / beta)",
    )


def _closed(model: nn.Module, table: pd.DataFrame) -> pd.Series:
    """Return which blocks still add nothing, because their branch or their skip gain is zero."""
    closed = table.residual_var == 0
    for i, path in table.path.items():
        gain = getattr(model.get_submodule(path), "skip_gain", None)
        closed[i] = closed[i] or (gain is not None and not gain.detach().any())
    return closed


def _verdicts(table: pd.DataFrame, faults: list[Fault], closed: pd.Series) -> list[str]:
    theory = "expected_var" in table
    named = {f.block: f.verdict for f in reversed(faults)}  # the first fault of a block counts
    sound = ["starts as its shortcut" if c else "matches theory" if theory else "sound" for c in closed]
    return [named.get(0, ""), *(named.get(i, sound[i]) for i in range(1, len(table)))]


def _first_of_each(faults: list[Fault]) -> list[Fault]:
    kinds: dict[tuple, Fault] = {}
    for fault in faults:
        around = fault.block if fault.block in ("input", 0, "head") else None
        kinds.setdefault((fault.verdict, around), fault)
    return list(kinds.values())
