"""Signal propagation: what a network does to the mean and variance of its input, block by block.

Source: NFNet precursor paper, section 3 ("signal propagation plots"). For a map x (N, C, H, W): mean_sq is the mean
over channels of the squared channel mean, var the mean over channels of the biased channel variance, both over (N, H,
W).
"""

import pandas as pd
import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError

FAR = 100.0  # a channel's squared mean over its variance, up to which sums of float32 keep five digits
COLUMNS = ["block", "stage", "mean_sq", "var", "residual_var"]


def signal_propagation(model: nn.Module, x: Tensor) -> pd.DataFrame:
    """Sends `x` (N, C, H, W) through `model`, in the mode it is in, and measures every block end.

    Returns: row 0 for the stem (residual_var NaN), then one row a block: block, stage, mean_sq and var of the trunk
    after the addition, residual_var of the branch before stochastic depth, skip gain and alpha. The model is left as
    found: mode, hooks, buffers and random state. Raises: WorkbenchError for a model without residual blocks.
    """
    blocks = residual_blocks(model)
    rows: list[dict] = []
    branch_var: list[float] = []

    def at_stem(module: nn.Module, args: tuple) -> None:
        rows.append({"block": 0, "stage": -1, **_moments(args[0]), "residual_var": float("nan")})

    def at_join(module: nn.Module, args: tuple) -> None:
        _, branch, gate = (*args, None)[:3]
        branch_var.append(_moments(branch, gate)["var"])

    def at_end(block: nn.Module, args: tuple, out: Tensor) -> None:
        rows.append({"block": len(rows), "stage": block.stage, **_moments(out), "residual_var": branch_var[-1]})

    hooks = [blocks[0].register_forward_pre_hook(at_stem)]
    hooks += [block.join.register_forward_pre_hook(at_join) for block in blocks]
    hooks += [block.register_forward_hook(at_end) for block in blocks]
    buffers = [(b, b.clone()) for b in model.buffers()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    return pd.DataFrame(rows, columns=COLUMNS)


def residual_blocks(model: nn.Module) -> list[nn.Module]:
    """The model's residual blocks, in order: modules with alpha, beta, stage, is_transition, residual(x) and join."""
    blocks = [
        m
        for m in model.modules()
        if all(hasattr(m, a) for a in ("alpha", "beta", "stage", "is_transition", "residual", "join"))
    ]
    if not blocks:
        raise WorkbenchError(
            f"{type(model).__name__} has no residual blocks to watch: its blocks need alpha, beta, stage, "
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
    if x.device.type == "cpu":
        maps, n = x.flatten(2), x.numel() // x.shape[1]
        sums, squares = maps.sum(2).double(), torch.linalg.vector_norm(maps, dim=2).double().square()  # (N, C)
        if gate is not None:
            factor = gate.double().flatten(1)
            sums, squares = sums * factor, squares * factor.square()
        mean = sums.sum(0) / n
        var = squares.sum(0) / n - mean.square()
        if x.dtype == torch.float32 and (mean.square() <= FAR * var).all():
            return {"mean_sq": mean.square().mean().item(), "var": var.mean().item()}
    var, mean = torch.var_mean(x if gate is None else gate * x, dim=(0, 2, 3), correction=0)
    return {"mean_sq": mean.double().square().mean().item(), "var": var.double().mean().item()}
