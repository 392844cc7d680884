"""Scaled weight standardisation as one operation.

Source: NFNet paper, equation 3, with max(N var, eps) in the root as in the authors' code. For a filter W of N weights:

    W_hat = row * (W - mean) / sqrt(max(N (var + added), floor)),    row = gain * the constants folded into it

The authors use a floor, timm adds to the variance. Legend: O filters of N weights each; g the gradient of W_hat.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

TINY = 1e-30  # always added to the variance: a filter of equal weights gives 0, not nan


def standardize(weight: Tensor, row: Tensor, *, floor: float, added: float = 0.0) -> Tensor:
    """Return W_hat, the standardised weight.

    Keeps no copy of the weight for backward. Can be differentiated twice, also forward (jvp), and batched (vmap).

    Args:
        weight: (O, ...).
        row: (O,), the gain times the constants of each filter.
        floor: Lower bound of N (var + added).
        added: Added to the variance.

    Returns:
        (O, ...) in the weight's precision. Half precision is standardised in float32.
    """
    last = weight.ndim == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
    ordered = weight.permute(0, 2, 3, 1) if last else weight  # as it lies in memory, so that nothing is copied
    w = (ordered.float() if weight.dtype.itemsize < 4 else ordered).flatten(1)
    row, rule = row.to(w.dtype), (floor, added or TINY)
    if torch.compiler.is_compiling() or _transformed():
        w_hat = _literally(w, row, *rule)
    elif torch.is_grad_enabled() and (w.requires_grad or row.requires_grad):
        w_hat, _, _ = _Standardize.apply(w, row, *rule)
    else:
        w_hat, _, _ = _standardize(w, row, *rule)
    w_hat = w_hat.view(ordered.shape)
    return (w_hat.permute(0, 3, 1, 2) if last else w_hat).to(weight.dtype)


def _transformed() -> bool:
    """Whether the call is inside vmap, grad or jvp of torch.func, or inside forward-mode differentiation."""
    level = torch._C._functorch.maybe_current_level()  # pyright: ignore[reportAttributeAccessIssue]: torch has no stub
    return level is not None or forward_ad._current_level >= 0


def _literally(w: Tensor, row: Tensor, floor: float, added: float) -> Tensor:
    """The plain formula, for a compiler and for torch.func: they derive the gradient from its operations."""
    var, mean = torch.var_mean(w, dim=1, correction=0, keepdim=True)
    return (w - mean) * (row[:, None] * torch.clamp(w.shape[1] * (var + added), min=floor).rsqrt())


def _standardize(w: Tensor, row: Tensor, floor: float, added: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return W_hat (O, N), mean (O, 1) and 1 / sqrt(var + added) (O, 1).

    The layer-norm kernel is the fastest way to compute them.
    """
    z, mean, inverse = torch.native_layer_norm(w, w.shape[1:], None, None, added)
    return z.mul_(row[:, None] * _share(w, inverse, floor)), mean, inverse


def _share(w: Tensor, inverse: Tensor, floor: float) -> Tensor:
    """Return W_hat / (row * z), (O, 1), where z has variance 1.

    It is 1 / sqrt(N), or less under the floor.
    """
    most = w.shape[1] ** -0.5
    return (inverse * floor**0.5).reciprocal().clamp_max(most) if floor else torch.full_like(inverse, most)


class _Standardize(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor, row: Tensor, floor: float, added: float) -> tuple[Tensor, Tensor, Tensor]:
        return _standardize(w, row, floor, added)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        w, row, ctx.floor, ctx.added = inputs
        _, mean, inverse = output
        ctx.mark_non_differentiable(mean, inverse)
        ctx.save_for_backward(w, row, mean, inverse)

    @staticmethod
    def backward(ctx, g: Tensor, *_) -> tuple[Tensor, Tensor, None, None]:
        w, row, *moments = ctx.saved_tensors
        inverse = moments[1]
        if torch.is_grad_enabled():  # for a second derivative it must be a function of the weight
            inverse = (w.var(1, correction=0, keepdim=True) + ctx.added).rsqrt()
        share = _share(w, inverse, ctx.floor)
        factor = row[:, None] * share
        # Batch norm with filters as channels is the same function, and its backward gives both gradients in one pass.
        for_w, for_factor, _ = torch.ops.aten.native_batch_norm_backward(
            g[None].contiguous(), w[None], factor.flatten(), None, None, *map(torch.flatten, moments),
            True, ctx.added, [True, True, False],
        )  # fmt: skip
        for_w, for_row = for_w[0], for_factor * share.flatten()
        floored = share < w.shape[1] ** -0.5
        if _may_hold(floored):  # under the floor the root is a constant
            constant = (g - g.mean(1, keepdim=True)) * factor * inverse
            for_w = torch.where(floored, constant, for_w)
        return for_w, for_row, None, None


def _may_hold(condition: Tensor) -> bool:
    """Whether it may hold anywhere. Only on the CPU is it read; elsewhere reading would wait."""
    return condition.device.type != "cpu" or bool(condition.any())
