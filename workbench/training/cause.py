"""Find out why a training diverged, and name the parameter.

It is the parameter in which a value that is not finite arose, or the one with the largest ratio of gradient to weight.
Source of the ratio: NFNet paper, section 3, |G_i| / max(|W_i|, eps), the largest over the units of a parameter.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from workbench.optim.norms import unit_norms
from workbench.optim.units import units_of
from workbench.training.watch import LossWatch

Calls = list[tuple[str, list[str], bool]]  # path of the module, its direct parameters, whether its output was finite


def gradient_norms(parameters: list[nn.Parameter]) -> Tensor:
    """Return the norm of each parameter's gradient, (P,) on the device.

    The norm of a missing gradient is 0. It takes a few operations for all parameters and does not wait for the device.
    """
    norms = [parameters[0].new_zeros(())] * len(parameters)
    grads = {i: p.grad for i, p in enumerate(parameters) if p.grad is not None}
    foreach_norm = torch._foreach_norm  # pyright: ignore[reportPrivateImportUsage]  # torch has no public name for it
    for i, norm in zip(grads, foreach_norm(list(grads.values())), strict=True):
        norms[i] = norm
    return torch.stack(norms)


@torch.no_grad()
def largest_ratios(model: nn.Module, eps: float = 1e-3) -> Tensor:
    """Return the largest |G_i| / max(|W_i|, eps) over the units of each parameter.

    The norms are those of AGC.

    Args:
        model: The network.
        eps: Lower bound on the weight norm of a unit.

    Returns:
        (P,) on the device, or 0 for a missing gradient.
    """
    zero, layouts = next(model.parameters()).new_zeros(()), units_of(model)

    def largest(p: nn.Parameter) -> Tensor:
        units = layouts.get(id(p))
        return zero if p.grad is None else (unit_norms(p.grad, units) / unit_norms(p, units).clamp_min(eps)).max()

    return torch.stack([largest(p) for p in model.parameters()])


def calls_of(model: nn.Module, run: Callable[[], object]) -> Calls:
    """Call `run`, and list the modules with direct parameters in the order of their calls."""
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
    """Describe the cause of a divergence in one sentence, with its step and its parameter.

    The parameter is the one in which the problem arose:

    - The loss is not finite: it spread up the forward pass. The cause is the first module whose output is not finite,
      named by its first parameter.
    - Only gradients are not finite: they spread down the backward pass. The cause is the parameter nearest to the loss.
    - All is finite, but the loss is above its limit: the suspect is the parameter with the largest ratio of gradient to
      weight over its units.

    Args:
        model: The network, with the weights of the step.
        losses: Has seen the step fail. Its norms are in the order of `model.parameters()`.
        again: Runs forward and backward of the step again.
        eps: AGC's lower bound on the weight norm of a unit.
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
    assert losses.norms is not None  # set when a step fails
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
        worst = max(ratios, key=lambda name: ratios[name])
        parts.append(f"largest gradient for its weight: {worst}, ratio {ratios[worst]:.3g}")
    return "; ".join(parts)


def cause_of_evaluation(model: nn.Module, step: int, loss: float, again: Callable[[], object]) -> str:
    """Describe the cause of a validation loss that is not finite.

    The losses of the steps before it were finite.

    Args:
        model: The network.
        step: The step before the evaluation.
        loss: The validation loss.
        again: Runs the evaluation again.
    """
    name = _broken_parameter(model, calls_of(model, again))
    return f"validation loss {loss:.9g} at step {step}" + (f": not finite first in {name}" if name else "")


def _broken_parameter(model: nn.Module, calls: Calls) -> str | None:
    """Return a parameter of the first module whose output is not finite.

    It is a parameter that is not finite, or else the first of the module.
    """
    values = dict(model.named_parameters())
    for _, params, finite in calls:
        if not finite:
            return next((name for name in params if not values[name].isfinite().all()), params[0])
    return None


def _in_order(model: nn.Module, calls: Calls, names: set[str]) -> list[str]:
    """Sort parameters in the order of the forward pass.

    Parameters of modules that were not called come first.
    """
    called = [name for _, params, _ in calls for name in params]
    rest = [name for name, _ in model.named_parameters() if name not in called]
    return [name for name in rest + called if name in names]
