"""Signal propagation: moments of a network's maps and gradients, block by block.

Source: NFNet precursor paper, section 3 ("signal propagation plots"). A channel's mean and biased variance are taken
over (N, H, W) of a map (N, C, H, W). `mean_sq` is the mean over channels of the squared channel mean, and `var` is the
mean over channels of the channel variance.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import cast

import pandas as pd
import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError, unknown
from workbench.memory_layout import arranged, faster
from workbench.models.additions import Addition, Additions, watch_modules
from workbench.models.layers import StochasticDepth
from workbench.probes.cuts import Cuts
from workbench.probes.dead import DeadUnits
from workbench.probes.moments import kurtosis as kurtosis_of
from workbench.probes.moments import moments
from workbench.probes.moments import peak as peak_of
from workbench.probes.plain_layers import Layers
from workbench.probes.shared import as_inputs, checked_loss, left_unchanged, refuse_lazy

COLUMNS = ["block", "stage", "mean_sq", "var", "residual_var"]

Loss = Callable[[Tensor], Tensor]


class LibraryBlock(nn.Module):
    """Attributes of this library's residual blocks, for type checkers.

    No block inherits from this class.
    """

    alpha: float
    beta: float
    stage: int
    is_transition: bool
    act: Callable[[Tensor], Tensor]
    join: nn.Module
    skip_gain: Tensor
    squeeze_excite: nn.Module | None
    conv0: nn.Module
    conv1: nn.Module
    conv1b: nn.Module
    conv2: nn.Module
    conv_shortcut: nn.Module


def signal_propagation(
    model: nn.Module,
    x: Tensor | Sequence[Tensor],
    *,
    channels: int | None = None,
    blocks: Sequence[str] | None = None,
    backward: bool | Loss = False,
    dead: bool = False,
    kurtosis: bool = False,
    peak: bool = False,
    cut_off: bool = False,
) -> pd.DataFrame:
    """Send an input through a model and measure the trunk after every residual block.

    Residual blocks of this library are known. In other networks they are found by their additions. A network without
    additions, such as VGG, DenseNet or a perceptron, is measured after every layer instead, see `plain_layers`. The
    model runs in its current mode. Mode, hooks, buffers, gradients and random state stay unchanged.

    Args:
        model: The network.
        x: The network's input: images, features (N, C) or whole numbers such as tokens (N, T). Give a tuple of tensors
            for a model that is called as model(*x).
        channels: Dimension of the channels. None: dimension 1 of maps (N, C, H, W) and features (N, C), and the last
            dimension of tokens (N, T, C). Maps (N, H, W, C) are recognised by H = W.
        blocks: Names of the modules whose outputs are the trunk, instead of those that are found.
        backward: Add the column grad_var. True sends a gradient from N(0, 1) back from the last block. A function of
            the model's output sends back the gradient of that loss. Like every backward pass, this keeps activations.
        dead: Add the column dead.
        kurtosis: Add the column kurtosis.
        peak: Add the column peak.
        cut_off: Add the column cut_off. Needs `backward`.

    Returns:
        Row 0 for the stem, which is the input of the first block, and then one row per block. `attrs["unit"]` of the
        table says what its rows are: "block", or "layer" in networks without additions. There row 0 is the network's
        input. Columns:

        - block: Index of the block. 0: the stem.
        - stage: Index of the stage. A stage begins where the shape of the trunk changes, or the size of layers' maps.
        - mean_sq, var: Of the trunk after the addition.
        - residual_var: Variance of the branch; NaN for the stem. In networks of this library, the branch is measured
          before stochastic depth, skip gain and alpha. In other networks, it is measured as it is added.
        - grad_var: Channel variance of the gradient at the trunk.
        - dead: Largest share of channels that never vary in the input of a convolution or matrix product of the block.
        - kurtosis: Of the trunk; 3 for normal values.
        - peak: Largest absolute value of the trunk.
        - cut_off: "branch" or "shortcut" if no gradient passes it, "trunk" if none passes the block, or else "".
        - path: Name of the block's module.

    Raises:
        WorkbenchError: If the model has lazy modules, or neither residual blocks nor layers, or `blocks` names no
            module of it. Also if no gradient comes back to the input.
    """
    refuse_lazy(model)
    inputs = as_inputs(x)
    if library_blocks(model):  # others may need contiguous maps
        inputs = [arranged(t, faster(t.device)) for t in inputs]
    extras = {"kurtosis": kurtosis_of if kurtosis else None, "peak": peak_of if peak else None}
    with left_unchanged(model), torch.set_grad_enabled(bool(backward)):
        leaves = [t.detach().clone().requires_grad_(bool(backward) and t.is_floating_point()) for t in inputs]
        for way in _ways(model, blocks):
            table = _Table(inputs, extras, channels, dead, Cuts(model) if cut_off and backward else None)
            with table.watching_units():
                out = way(model, [t.clone() for t in leaves], table)
            if len(table.rows) > 1:
                break
        else:
            raise WorkbenchError(
                f"{type(model).__name__} has neither residual blocks nor layers: it never adds two maps (N, C, ...), "
                f"and multiplies none by weights. Name the modules to measure, {_example(model)}."
            )
        if backward:
            loss = None if backward is True else checked_loss(backward(out), "Give a function of the model's output")
            table.send_back([t for t in leaves if t.requires_grad], loss, model)
    return table.frame()


def _ways(model: nn.Module, blocks: Sequence[str] | None) -> list[Callable]:
    """Return ways to run the model and fill the table. The first that finds anything counts."""
    if blocks is not None:
        return [partial(_run_named, _modules(model, blocks))]
    if ours := library_blocks(model):
        return [partial(_run_library, ours)]
    return [_run_watched, _run_layers, partial(_run_layers, pooled=True)]


@contextlib.contextmanager
def in_training(model: nn.Module) -> Iterator[None]:
    """Within the context, use training mode, but without dropout and stochastic depth.

    BatchNorm then normalises by the batch, and nothing is random.
    """
    modes = [(m, m.training) for m in model.modules()]
    model.train()
    for module in model.modules():
        name = type(module).__name__.lower()
        if isinstance(module, StochasticDepth) or "drop" in name or "stochastic" in name:
            module.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class _Table:
    """Rows of the table, which grow during a forward pass.

    The stem comes first, and then each block's branch and trunk.
    """

    def __init__(
        self,
        inputs: list[Tensor],
        extras: dict[str, Callable | None],
        channels: int | None,
        dead: bool,
        cuts: Cuts | None,
    ):
        self.extras = {name: measure for name, measure in extras.items() if measure is not None}
        self.channels = channels
        features = all(t.is_floating_point() and t.ndim <= 2 for t in inputs)
        self.least = 2 if features else 3  # least number of dimensions of a trunk
        self.units = DeadUnits(0 if features else inputs[0].shape[0]) if dead else None
        self.cuts = cuts
        self.rows: list[dict] = []
        self.branch_var = float("nan")
        self.unit = "block"
        self.last: Tensor | None = None
        self.real_gradient = False

    def watching_units(self) -> contextlib.AbstractContextManager:
        return self.units or contextlib.nullcontext()

    def stem(self, h: Tensor | None) -> None:
        self._add({"block": 0, "stage": -1, "residual_var": float("nan"), "path": ""}, h)

    def branch(self, branch: Tensor, gate: Tensor | None = None, channels_known: bool = True) -> None:
        with torch.no_grad():
            if not channels_known:
                branch, gate = channels_second(branch if gate is None else branch * gate, self.channels), None
            self.branch_var = moments(branch.detach(), gate)["var"]

    def operands(self, path: str, *added: Tensor | None, lost: Callable[[Tensor], bool]) -> None:
        """Take shortcut, branch and gate of the addition that ends the next block."""
        if self.cuts is not None:
            with torch.no_grad():
                # callers give shortcut and branch, and only the gate may be None
                self.cuts.look(len(self.rows), path, *cast(tuple[Tensor, ...], added), lost=lost)

    def end(self, h: Tensor, path: str, stage: int | None = None) -> None:
        shape = h.shape[1:]
        if stage is None:
            before = self.rows[-1]
            stage = max(0, before["stage"] + (before["stage"] >= 0 and shape != self.last_shape))
        self.last_shape = shape
        self._add({"block": len(self.rows), "stage": stage, "residual_var": self.branch_var, "path": path}, h)
        self.branch_var = float("nan")

    def _add(self, row: dict, h: Tensor | None) -> None:
        if h is not None:
            with torch.no_grad():
                view = channels_second(h.detach(), self.channels)
                row |= moments(view) | {name: measure(view) for name, measure in self.extras.items()}
        if self.units is not None:
            row["dead"] = self.units.take()
        self.rows.append(row)

    def watch_gradient(self, h: Tensor) -> None:
        """Record the gradient at the last trunk during the backward pass."""
        row, self.last = self.rows[-1], h
        if h.requires_grad:
            h.register_hook(lambda gradient: self._gradient(row, gradient))

    def _gradient(self, row: dict, gradient: Tensor) -> Tensor:
        if not self.real_gradient and row is self.rows[-1]:
            noise = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))
            gradient = noise.to(gradient)
        row["grad_var"] = moments(channels_second(gradient.detach(), self.channels))["var"]
        return gradient

    def send_back(self, leaves: list[Tensor], loss: Tensor | None, model: nn.Module) -> None:
        params = [p for p in model.parameters() if p.requires_grad]
        cure = "Check whether the model detaches tensors or runs without gradients."
        try:
            if self.cuts is not None:
                self.cuts.settle()
                for row in self.rows:  # settle() ran backward passes of its own, which called the hooks
                    row.pop("grad_var", None)
            self.real_gradient = loss is not None
            value = cast(Tensor, self.last).sum() if loss is None else loss
            grads = torch.autograd.grad(value, leaves or params, allow_unused=True)
            lost = all(g is None for g in grads)
            if lost and self.cuts is not None:  # follow the gradient as far as it gets
                torch.autograd.grad(value, params, allow_unused=True)
        except RuntimeError as error:
            raise WorkbenchError(f"no gradient comes back to the input ({error}). {cure}") from error
        if lost:
            ended = max((i for i, row in enumerate(self.rows) if i and "grad_var" not in row), default=0)
            if self.cuts is None or ended == len(self.rows) - 1:
                raise WorkbenchError(f"no gradient comes back to the input. {cure}")
            self.cuts.by_row.setdefault(ended + 1, "trunk")

    def frame(self) -> pd.DataFrame:
        measured = {name for row in self.rows for name in row}
        extras = [name for name in ("grad_var", "dead", "kurtosis", "peak") if name in measured]
        table = pd.DataFrame(self.rows, columns=[*COLUMNS, *extras, "path"])
        if self.cuts is not None:
            table.insert(len(table.columns) - 1, "cut_off", [self.cuts.by_row.get(i, "") for i in table.index])
        table.attrs["unit"] = self.unit
        return table


def _run_library(blocks: list[LibraryBlock], model: nn.Module, inputs: list[Tensor], table: _Table) -> Tensor:
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}

    def at_stem(module: nn.Module, args: tuple) -> None:
        table.stem(args[0])
        table.watch_gradient(args[0])

    def at_join(module: nn.Module, args: tuple) -> None:
        _, branch, gate = cast(tuple[Tensor, Tensor, Tensor | None], (*args, None)[:3])
        table.operands(names[module], *args[:3], lost=lambda t: not t.requires_grad)
        table.branch(branch, gate)

    def at_end(block: LibraryBlock, args: tuple, out: Tensor) -> None:
        table.end(out, names[block], block.stage)
        table.watch_gradient(out)

    hooks = [blocks[0].register_forward_pre_hook(at_stem)]
    hooks += [block.join.register_forward_pre_hook(at_join) for block in blocks]
    hooks += [block.register_forward_hook(at_end) for block in blocks]
    return _run(model, inputs, hooks)


def _run_watched(model: nn.Module, inputs: list[Tensor], table: _Table) -> Tensor:
    additions: list[Addition] = []
    pending: list[Tensor] = []

    def before(addition: Addition) -> None:
        if not additions:
            table.stem(None)
        additions.append(addition._replace(shortcut=None, branch=None, gate=None))
        if addition.deeper:
            table.operands(addition.module, *addition[1:4], lost=watch.lost)
        table.branch(addition.branch, addition.gate, channels_known=False)

    def after(out: Tensor) -> None:
        table.end(out, additions[-1].module)
        pending.append(out)

    def settled() -> None:  # a result joins the graph of gradients only after its operation has ended
        while pending:
            table.watch_gradient(pending.pop())

    start = [t.detach().clone() for t in inputs]  # a network may write into its input
    watch = Additions(inputs, before, after, settled, table.least)
    hooks = watch_modules(model, watch.stack)
    with watch:
        out = _run(model, inputs, hooks)
    settled()
    if not additions:
        return out
    with torch.no_grad():
        stem = _input_of(model, additions[0].module, start, table.least)
        table.rows[0] |= {} if stem is None else moments(channels_second(stem, table.channels))
    return out


def _run_layers(model: nn.Module, inputs: list[Tensor], table: _Table, pooled: bool = False) -> Tensor:
    stage, size = -1, None

    def measure(h: Tensor, path: str) -> None:
        nonlocal stage, size
        before, size = size, channels_second(h, table.channels).shape[2:]
        stage += size != before
        table.end(h, path, stage)
        table.watch_gradient(h)

    table.unit = "layer"
    first = next((t for t in inputs if t.is_floating_point() and t.ndim > 1), None)
    table.stem(first)
    if first is not None:
        table.watch_gradient(first)
    watch = Layers(inputs, measure, pooled)
    hooks = watch_modules(model, watch.stack)
    with watch:
        out = _run(model, inputs, hooks)
    if pooled and len(table.rows) == 1:  # the output is the only layer
        for h, path in list(watch.unfinished.items()):
            measure(h, path)
    return out


def _example(model: nn.Module) -> str:
    names = [name for name, _ in model.named_children()][:2] or ["layer1", "layer2"]
    return f"blocks={names} (--blocks {','.join(names)})"


def _run_named(blocks: list[tuple[str, nn.Module]], model: nn.Module, inputs: list[Tensor], table: _Table) -> Tensor:
    names = {name for name, _ in blocks}
    watch = Additions(inputs, lambda addition: in_block(addition), lambda out: None, least=table.least)

    def in_block(addition: Addition) -> None:
        if names.intersection(watch.stack):
            if addition.deeper:
                table.operands(addition.module, *addition[1:4], lost=watch.lost)
            table.branch(addition.branch, addition.gate, channels_known=False)

    def at_start(module: nn.Module, args: tuple) -> None:
        if not table.rows:
            trunk = args[0] if args and isinstance(args[0], Tensor) and args[0].ndim >= table.least else None
            table.stem(trunk)
            if trunk is not None:
                table.watch_gradient(trunk)

    def at_end(name: str, out: Tensor) -> None:
        if not isinstance(out, Tensor) or out.ndim < table.least:
            kind = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise WorkbenchError(
                f"`blocks` must name modules that return a map (N, C, ...), but {name} returns {kind}."
            )
        table.end(out, name)
        table.watch_gradient(out)

    hooks = watch_modules(model, watch.stack)
    for name, module in blocks:
        hooks.append(module.register_forward_pre_hook(at_start))
        hooks.append(module.register_forward_hook(lambda m, args, out, name=name: at_end(name, cast(Tensor, out))))
    with watch:
        out = _run(model, inputs, hooks)
    if not table.rows:
        raise WorkbenchError(
            f"no module in `blocks` runs in the forward pass of {type(model).__name__}, got {sorted(names)}."
        )
    return out


def _run(model: nn.Module, inputs: list[Tensor], hooks: list) -> Tensor:
    try:
        return model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()


def _modules(model: nn.Module, names: Sequence[str]) -> list[tuple[str, nn.Module]]:
    if isinstance(names, str) or len(set(names)) < len(names):
        raise WorkbenchError(
            f"`blocks` must be a list of different names, such as ['layer1', 'layer2'], got {names!r}."
        )
    known = dict(model.named_modules())
    for name in names:
        if name not in known or not name:
            raise unknown(f"module of {type(model).__name__}", name, [k for k in known if k])
    return [(name, known[name]) for name in names]


class _Seen(Exception):
    """Signal that ends a forward pass early."""


def _input_of(model: nn.Module, name: str, inputs: list[Tensor], least: int) -> Tensor | None:
    """Run the model up to the module with this name and return its first input.

    Returns:
        The input; None if it is not a map.
    """
    first = []

    def look(module: nn.Module, args: tuple) -> None:
        first.append(args[0] if args else None)
        raise _Seen

    hook = model.get_submodule(name).register_forward_pre_hook(look)
    try:
        model(*inputs)
    except _Seen:
        pass
    finally:
        hook.remove()
    known = first and isinstance(first[0], Tensor) and first[0].is_floating_point() and first[0].ndim >= least
    return first[0] if known else None


def channels_second(x: Tensor, channels: int | None) -> Tensor:
    """Move the channels of maps or tokens to dimension 1. Features (N, C) become (N, C, 1).

    Args:
        x: Map, tokens or features.
        channels: Dimension of the channels, as in `signal_propagation`.

    Returns:
        A view (N, C, ...).
    """
    if x.ndim == 2:
        return x.unsqueeze(2)
    if channels is None:
        last = x.ndim == 3 or (x.ndim == 4 and x.shape[1] == x.shape[2] != x.shape[3])
        channels = -1 if last else 1
    return x.movedim(channels, 1)


def library_blocks(model: nn.Module) -> list[LibraryBlock]:
    """Return the residual blocks of a network of this library; empty for other networks."""
    attributes = ("alpha", "beta", "stage", "is_transition", "residual", "join")
    return cast(list[LibraryBlock], [m for m in model.modules() if all(hasattr(m, a) for a in attributes)])


def residual_blocks(model: nn.Module) -> list[LibraryBlock]:
    """Return the residual blocks of a network of this library, in order.

    Raises:
        WorkbenchError: If the network has none.
    """
    blocks = library_blocks(model)
    if not blocks:
        raise WorkbenchError(
            f"{type(model).__name__} has no residual blocks of this library. Give them alpha, beta, stage, "
            "is_transition, residual(x) and a module `join` that adds shortcut and branch, as in "
            "workbench.models.nf_resnet.Block."
        )
    return blocks
