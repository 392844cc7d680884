"""Parameters with gradients, without a network around them: about one unit in twenty is over AGC's threshold."""

import torch
from torch import Tensor

from workbench.models import create_model
from workbench.optim import unitwise_norm


def nfnet_f0(device: str) -> list[Tensor]:
    """NFNet-F0's parameters, 71.5 million in 233 tensors."""
    return _with_gradients(create_model("nfnet_f0", 1000).to(device))


def small(device: str) -> list[Tensor]:
    """A network of 0.9 million parameters in 97 tensors."""
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
    """The same parameters and gradients n times over."""
    sets = []
    for _ in range(n):
        mine = [p.detach().clone().requires_grad_() for p in params]
        for a, b in zip(mine, params, strict=True):
            a.grad = b.grad.clone()
        sets.append(mine)
    return sets


def as_before(*sets: list[Tensor]):
    """A function that puts the gradients back to what they are now: clipping once leaves nothing to clip."""
    before = [p.grad.clone() for p in sets[0]]

    def put_back() -> None:
        for params in sets:
            torch._foreach_copy_([p.grad for p in params], before)

    return put_back


def largest_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Of gradients and parameters, over the norm of the tensor."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True)]
    pairs += [(a.grad, b.grad) for a, b in pairs]
    with torch.no_grad():
        return max(((a - b).norm() / b.norm().clamp_min(1e-12)).item() for a, b in pairs)


def traffic(params: list[Tensor], passes: float) -> float:
    """Bytes of so many passes over tensors of the parameters' size."""
    return passes * sum(p.numel() * p.element_size() for p in params)
