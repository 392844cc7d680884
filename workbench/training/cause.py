"""Why a training diverged: the parameter in which what is not finite arose, or the one that its gradient pulls most.

Source of the ratio: NFNet paper, section 3, |G_i| / max(|W_i|, eps), the largest over the units of a parameter.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from workbench.optim.agc import unitwise_norm
from workbench.training.watch import LossWatch

Calls = list[tuple[str, list[str], bool]]  # module, its own parameters, whether its output was finite


def gradient_norms(parameters: list[nn.Parameter]) -> Tensor:
    """The norm of each parameter's gradient, (P,), on the device; 0 where there is none. A few operations in all, and
    nothing waits."""
    norms = [parameters[0].new_zeros(())] * len(parameters)
    at = [i for i, p in enumerate(parameters) if p.grad is not None]
    for i, norm in zip(at, torch._foreach_norm([parameters[i].grad for i in at]), strict=True):
        norms[i] = norm
    return torch.stack(norms)


@torch.no_grad()
def largest_ratios(model: nn.Module, eps: float = 1e-3) -> Tensor:
    """Of each parameter the largest |G_i| / max(|W_i|, eps) over its units, as AGC measures it, (P,) on the device; 0
    where there is no gradient."""
    zero = next(model.parameters()).new_zeros(())
    return torch.stack(
        [
            zero if p.grad is None else (unitwise_norm(p.grad) / unitwise_norm(p).clamp_min(eps)).max()
            for p in model.parameters()
        ]
    )


def calls_of(model: nn.Module, run: Callable[[], object]) -> Calls:
    """Runs, and lists the modules with parameters of their own in the order in which they were done."""
    seen: dict[str, tuple[list[str], Tensor]] = {}
    hooks = []
    for path, module in model.named_modules():
        params = [f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)]
        if params:

            def done(_, __, out: Tensor, path: str = path, params: list[str] = params) -> None:
                finite = out.detach().isfinite().all() & seen.get(path, (params, torch.tensor(True)))[1].to(out.device)
                seen[path] = (params, finite)

            hooks.append(module.register_forward_hook(done))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [(path, params, bool(finite)) for path, (params, finite) in seen.items()]


def cause_of_step(model: nn.Module, losses: LossWatch, again: Callable[[], object], eps: float) -> str:
    """The cause of a divergence in a sentence, with its step and its parameter.

    The rule: what is not finite is named where it arose, in the direction in which it spread. A loss that is not finite
    came up the forward pass, so the first module whose output is not finite is named, by its first parameter. Where the
    loss is finite and gradients are not, they came down the backward pass: of these the parameter nearest to the loss.
    Where all is finite and the loss is above its limit, the suspect is the parameter with the largest ratio of gradient
    to weight over units.

    Args:
        model: The network, with the weights that the step had.
        losses: Has seen the step fail; its norms are in the order of `model.parameters()`.
        again: Does the step's forward and backward again.
        eps: AGC's floor of a unit's weight norm.
    """
    step, loss, limit = losses.step, losses.loss, losses.limit
    calls = calls_of(model, again)
    name = _broken_parameter(model, calls) if not math.isfinite(loss) else None
    if name is not None:
        return f"training loss {loss:.9g} at step {step}: not finite first in {name}"
    parts = []
    if not loss <= limit:
        parts.append(f"training loss {loss:.9g} at step {step}")
        if math.isfinite(loss):
            parts[0] += f" is above {limit:.4g}"
    pairs = zip(model.named_parameters(), losses.norms.tolist(), strict=True)
    bad = {name for (name, _), norm in pairs if not math.isfinite(norm)}
    if bad:
        where = f"at step {step}" if not parts else "too"
        parts.append(f"gradient norm of {_in_order(model, calls, bad)[-1]} not finite {where}")
        if len(bad) > 1:
            parts.append(f"of {len(bad)} such parameters the nearest to the loss")
    else:
        ratios = dict(
            zip((name for name, _ in model.named_parameters()), largest_ratios(model, eps).tolist(), strict=True)
        )
        worst = max(ratios, key=ratios.get)
        parts.append(f"largest gradient for its weight: {worst}, ratio {ratios[worst]:.3g}")
    return "; ".join(parts)


def cause_of_evaluation(model: nn.Module, step: int, loss: float, again: Callable[[], object]) -> str:
    """The same for a validation loss that is not finite behind a step whose own loss was."""
    name = _broken_parameter(model, calls_of(model, again))
    return f"validation loss {loss:.9g} at step {step}" + (f": not finite first in {name}" if name else "")


def _broken_parameter(model: nn.Module, calls: Calls) -> str | None:
    """Of the first module whose output is not finite: the parameter that is not, else its first."""
    values = dict(model.named_parameters())
    for _, params, finite in calls:
        if not finite:
            return next((name for name in params if not values[name].isfinite().all()), params[0])
    return None


def _in_order(model: nn.Module, calls: Calls, names: set[str]) -> list[str]:
    """These parameters in the order of the forward pass; those that no module's call showed come first."""
    shown = [name for _, params, _ in calls for name in params]
    rest = [name for name, _ in model.named_parameters() if name not in shown]
    return [name for name in rest + shown if name in names]
