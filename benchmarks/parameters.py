"""Parameters with gradients, without a network. AGC clips about one unit in twenty."""

from collections.abc import Callable

import torch
from torch import Tensor

from workbench.models import create_model
from workbench.optim import unitwise_norm


def nfnet_f0(device: str) -> list[Tensor]:
    """Make NFNet-F0's parameters, 71.5 million in 233 tensors."""
    return _with_gradients(create_model("nfnet_f0", 1000).to(device))


def small(device: str) -> list[Tensor]:
    """Make the parameters of a small network, 0.9 million in 97 tensors."""
    return _with_gradients(create_model("nf_resnet26_cifar", 10).to(device))


def _with_gradients(model) -> list[Tensor]:
    torch.manual_seed(0)
    params = [p.detach().clone().requires_grad_() for p in model.parameters()]
    for p in params:
        with torch.no_grad():
            p.add_(0.01 * torch.randn_like(p))
            ratio = torch.exp(torch.randn_like(unitwise_norm(p)) * 0.6 - 5.6)  # |G| / |W| around 0.004
            g = torch.randn_like(p)
            p.grad = g * (ratio * unitwise_norm(p) / unitwise_norm(g).clamp_min(1e-12))
    return params


def copies(params: list[Tensor], n: int) -> list[list[Tensor]]:
    """Make n copies of the parameters and gradients."""
    sets = []
    for _ in range(n):
        copied = [p.detach().clone().requires_grad_() for p in params]
        for a, b in zip(copied, params, strict=True):
            a.grad = b.grad.clone()
        sets.append(copied)
    return sets


def gradient_restorer(*sets: list[Tensor]) -> Callable[[], None]:
    """Make a function that restores the current gradients.

    Without it, only the first call has gradients to clip.

    Args:
        *sets: Copies of the same parameters.

    Returns:
        The function.
    """
    before = [p.grad.clone() for p in sets[0]]

    def put_back() -> None:
        for params in sets:
            torch._foreach_copy_([p.grad for p in params], before)

    return put_back


def largest_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest relative difference of any parameter or gradient."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True)]
    pairs += [(a.grad, b.grad) for a, b in pairs]
    with torch.no_grad():
        return max(((a - b).norm() / b.norm().clamp_min(1e-12)).item() for a, b in pairs)


def traffic(params: list[Tensor], passes: float) -> float:
    """Return the bytes that `passes` passes over tensors of the parameters' size move."""
    return passes * sum(p.numel() * p.element_size() for p in params)
