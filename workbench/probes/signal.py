"""Signal propagation: what a network does to the mean and variance of its input, block by block.

Source: NFNet precursor paper, section 3 ("signal propagation plots"). For a map x (N, C, H, W): mean_sq is the mean
over channels of the squared channel mean, var the mean over channels of the biased channel variance, both over (N, H,
W).
"""

import pandas as pd
import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.models.additions import Addition, Additions, watch_modules

FAR = 100.0  # a channel's squared mean over its variance, up to which sums of float32 keep five digits
COLUMNS = ["block", "stage", "mean_sq", "var", "residual_var"]


def signal_propagation(model: nn.Module, x: Tensor, *, channels: int | None = None) -> pd.DataFrame:
    """Sends `x` through `model`, in the mode it is in, and measures every block end.

    Returns: row 0 for the stem, what the first block gets (residual_var NaN), then one row a block: block, stage (a new
    one where the trunk's shape changes), mean_sq and var of the trunk after the addition, residual_var of the branch,
    and path, the module's name. In networks of this library the branch is taken before stochastic depth, skip gain and
    alpha; in others, whose blocks are found by watching their additions, as it is added. `channels` is the dimension of
    the channels; None: 1 of maps (N, C, H, W), the last of tokens (N, T, C), and of maps (N, H, W, C), told by H = W.
    The model is left as found: mode, hooks, buffers and random state.
    Raises: WorkbenchError for a model that adds nothing to a trunk.
    """
    buffers = [(b, b.clone()) for b in model.buffers()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            blocks = own_blocks(model)
            rows = _own_rows(model, blocks, x) if blocks else _watched_rows(model, x, channels)
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    return pd.DataFrame(rows, columns=[*COLUMNS, "path"])


def _own_rows(model: nn.Module, blocks: list[nn.Module], x: Tensor) -> list[dict]:
    names = {module: name for name, module in model.named_modules()}
    rows: list[dict] = []
    branch_var: list[float] = []

    def at_stem(module: nn.Module, args: tuple) -> None:
        rows.append({"block": 0, "stage": -1, **_moments(args[0]), "residual_var": float("nan"), "path": ""})

    def at_join(module: nn.Module, args: tuple) -> None:
        _, branch, gate = (*args, None)[:3]
        branch_var.append(_moments(branch, gate)["var"])

    def at_end(block: nn.Module, args: tuple, out: Tensor) -> None:
        end = {**_moments(out), "residual_var": branch_var[-1], "path": names[block]}
        rows.append({"block": len(rows), "stage": block.stage, **end})

    hooks = [blocks[0].register_forward_pre_hook(at_stem)]
    hooks += [block.join.register_forward_pre_hook(at_join) for block in blocks]
    hooks += [block.register_forward_hook(at_end) for block in blocks]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def _watched_rows(model: nn.Module, x: Tensor, channels: int | None) -> list[dict]:
    ends: list[dict] = []
    shapes: list[tuple] = []

    def before(addition: Addition) -> None:
        branch = addition.branch if addition.gate is None else addition.branch * addition.gate
        found = _moments(_channels_second(branch, channels))["var"]
        ends.append({"residual_var": found, "path": addition.module})

    def after(out: Tensor) -> None:
        out = _channels_second(out, channels)
        shapes.append(tuple(out.shape[1:]))
        stage = ends[-2]["stage"] + (shapes[-1] != shapes[-2]) if len(ends) > 1 else 0
        ends[-1] |= {"block": len(ends), "stage": stage, **_moments(out)}

    x = x.detach().clone()  # a network may write into its input
    watch = Additions(x, before, after)
    hooks = watch_modules(model, watch.stack)
    try:
        with watch:
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not ends:
        raise WorkbenchError(
            f"{type(model).__name__} has no residual blocks to watch: it adds no branch to a trunk of the same shape."
        )
    stem = _input_of(model, ends[0]["path"], x)
    moments = _moments(_channels_second(stem, channels)) if stem is not None else {}
    return [{"block": 0, "stage": -1, "residual_var": float("nan"), "path": "", **moments}, *ends]


class _Seen(Exception):
    """Ends a forward pass that is needed no further."""


def _input_of(model: nn.Module, name: str, x: Tensor) -> Tensor | None:
    """What the module of this name gets first when `model` gets `x`; None where that is no map."""
    found = []

    def look(module: nn.Module, args: tuple) -> None:
        found.append(args[0] if args else None)
        raise _Seen

    hook = model.get_submodule(name).register_forward_pre_hook(look)
    try:
        model(x)
    except _Seen:
        pass
    finally:
        hook.remove()
    return found[0] if found and isinstance(found[0], Tensor) and found[0].ndim > 2 else None


def _channels_second(x: Tensor, channels: int | None) -> Tensor:
    """(N, C, ...) of a map or of tokens."""
    if channels is None:
        last = x.ndim == 3 or (x.ndim == 4 and x.shape[1] == x.shape[2] != x.shape[3])
        channels = -1 if last else 1
    return x.movedim(channels, 1)


def own_blocks(model: nn.Module) -> list[nn.Module]:
    """The residual blocks of a network of this library, in order; empty for another."""
    attributes = ("alpha", "beta", "stage", "is_transition", "residual", "join")
    return [m for m in model.modules() if all(hasattr(m, a) for a in attributes)]


def residual_blocks(model: nn.Module) -> list[nn.Module]:
    """The residual blocks of a network of this library, for which there is a theory.

    Raises: WorkbenchError for another network.
    """
    blocks = own_blocks(model)
    if not blocks:
        raise WorkbenchError(
            f"{type(model).__name__} is not built of this library's blocks: they have alpha, beta, stage, "
            "is_transition, residual(x) and a module `join` that adds shortcut and branch, "
            "as in workbench.models.nf_resnet.Block."
        )
    return blocks


def _moments(x: Tensor, gate: Tensor | None = None) -> dict[str, float]:
    """mean_sq and var of gate * x, x (N, C, H, W), without making the product.

    On a CPU by sums and norms, in double precision where maps are joined, which costs a fraction of a variance kernel;
    where a channel's mean is so far above its deviation that they would lose digits, by that kernel after all.
    """
    x = x.float() if x.dtype.itemsize < 4 else x
    if x.device.type == "cpu" and x.dtype == torch.float32:
        maps, n = x.flatten(2), x.numel() // x.shape[1]
        sums, squares = maps.sum(2).double(), torch.linalg.vector_norm(maps, dim=2).double().square()  # (N, C)
        if gate is not None:
            factor = gate.double().flatten(1)
            sums, squares = sums * factor, squares * factor.square()
        mean = sums.sum(0) / n
        var = squares.sum(0) / n - mean.square()
        if (mean.square() <= FAR * var).all():
            return {"mean_sq": mean.square().mean().item(), "var": var.mean().item()}
    x = (x if gate is None else gate * x).flatten(2)
    var, mean = torch.var_mean(x, dim=(0, 2), correction=0)
    return {"mean_sq": mean.double().square().mean().item(), "var": var.double().mean().item()}
