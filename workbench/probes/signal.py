"""Signal propagation: what a network does to the mean and variance of its input, block by block.

Source: NFNet precursor paper, section 3 ("signal propagation plots"). For a map x (N, C, H, W): mean_sq is the mean
over channels of the squared channel mean, var the mean over channels of the biased channel variance, both over (N, H,
W).
"""

import pandas as pd
import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError

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
        branch_var.append(_moments(branch if gate is None else gate * branch)["var"])

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


def _moments(x: Tensor) -> dict[str, float]:
    x = x.float() if x.dtype.itemsize < 4 else x
    var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    return {"mean_sq": mean.double().square().mean().item(), "var": var.double().mean().item()}
