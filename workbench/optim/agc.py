"""Adaptive gradient clipping around an optimizer. The rule is in `workbench.optim.clipping`."""

from collections.abc import Callable

import torch

from workbench.errors import WorkbenchError
from workbench.optim.clipping import _check_positive, _clip, _Clipped, clip_grad_agc_
from workbench.optim.norms import unitwise_norm
from workbench.optim.telemetry import AGCStats

__all__ = ["AGC", "AGCStats", "Clip", "clip_grad_agc_", "unitwise_norm"]

Clip = float | Callable[[int], float]  # a number, or a function of the step, counted from 0


class AGC:
    """Clip the gradients before every step of an optimizer.

    Example: ``AGC(torch.optim.SGD(param_groups(model, clip=0.01), lr=0.1))``.

    The "clip" of a parameter group is its threshold, and None exempts the group. Its "clip_eps" is the lower bound on
    |W_i|. `param_groups` writes both. The arguments of AGC apply to groups without these keys.

    Gradients must be final when ``step`` is called: all-reduced, accumulated, and unscaled if you use a GradScaler.
    The optimizer's ``state_dict`` keeps the numbers of the groups, but no functions. Functions and keys that a loaded
    state lacks stay unchanged. The ``state_dict`` of AGC is its step count.

    Args:
        optimizer: An optimizer that steps once on dense gradients.
        clip: The threshold of groups without "clip", 0.01 by default. A number, or a function of the step from 0.
        eps: The lower bound on |W_i| of groups without "clip_eps", 1e-3 by default.

    Attributes:
        stats: The AGCStats of the last step.

    Raises:
        WorkbenchError: At construction, if an argument differs from the value of a group, or for LBFGS and SparseAdam.
            In ``step``, for a closure or scaled gradients.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip: Clip | None = None, eps: float | None = None):
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise WorkbenchError(
                f"`optimizer` must be a torch.optim.Optimizer, got {type(optimizer).__name__}. "
                "Wrap the optimizer: AGC(torch.optim.SGD(...))."
            )
        if isinstance(optimizer, torch.optim.LBFGS | torch.optim.SparseAdam):
            raise WorkbenchError(
                f"AGC needs an optimizer that steps once on dense gradients, got {type(optimizer).__name__}. "
                "Use SGD or AdamW."
            )
        _refuse_second_value(optimizer, "clip", "clip", clip)
        _refuse_second_value(optimizer, "eps", "clip_eps", eps)
        clip, eps = 0.01 if clip is None else clip, 1e-3 if eps is None else eps
        if not callable(clip):
            _check_positive("clip", clip)
        _check_positive("eps", eps)
        self.optimizer, self.clip, self.eps = optimizer, clip, eps
        self.steps = 0
        self.stats = AGCStats()
        self._kept: list[dict] = []
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_state_dict_post_hook(_without_functions),
            optimizer.register_load_state_dict_pre_hook(self._keep),
            optimizer.register_load_state_dict_post_hook(self._put_back),
        ]

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if kwargs.get("closure") is not None or any(a is not None for a in args[1:]):
            raise WorkbenchError(
                "AGC clips before `step`, so the gradients of a closure would not be clipped. "
                "Call backward() yourself, then step() without a closure."
            )
        if getattr(optimizer, "grad_scale", None) is not None:
            raise WorkbenchError(
                "AGC needs unscaled gradients, but a GradScaler has scaled them. "
                "Call scaler.unscale_(optimizer) before scaler.step(optimizer)."
            )
        self.stats = _clip(self._parts())
        self.steps += 1

    def _parts(self) -> list[_Clipped]:
        parts = []
        for i, group in enumerate(self.optimizer.param_groups):
            setting: Clip | None = group.get("clip", self.clip)
            if setting is None:
                continue
            clip = setting(self.steps) if callable(setting) else setting
            numbers = [f"group {i}, {j}" for j in range(len(group["params"]))]
            names = group.get("names") or group.get("param_names") or numbers
            eps = group.get("clip_eps", self.eps)
            parts += [
                _Clipped(p, name, clip, eps, group.get("units")) for p, name in zip(group["params"], names, strict=True)
            ]
        return parts

    def _keep(self, optimizer: torch.optim.Optimizer, state: dict) -> None:
        self._kept = [
            {k: g[k] for k in ("clip", "clip_eps", "names", "units") if k in g} for g in optimizer.param_groups
        ]

    def _put_back(self, optimizer: torch.optim.Optimizer) -> None:
        for group, kept in zip(optimizer.param_groups, self._kept, strict=True):
            for key, value in kept.items():
                group.setdefault(key, value)

    def state_dict(self) -> dict:
        """Return the step count, which schedules of the threshold read."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        """Set the step count from a `state_dict`."""
        self.steps = state["steps"]

    def remove(self) -> None:
        """Stop clipping and restore the optimizer."""
        for hook in self._hooks:
            hook.remove()


def _refuse_second_value(optimizer: torch.optim.Optimizer, argument: str, key: str, value: Clip | None) -> None:
    """Refuse an argument that differs from the value of a group that is not exempt (None)."""
    for i, group in enumerate(optimizer.param_groups):
        group_value = group.get(key)
        if value is None or group_value is None or group_value == value:
            continue
        values = " and ".join(str(getattr(v, "__name__", v)) for v in (value, group_value))
        raise WorkbenchError(
            f"`{argument}` of AGC must equal \"{key}\" of parameter group '{group.get('name', i)}', got {values}. "
            f"Set it in the groups, as param_groups does, and leave `{argument}` out of AGC."
        )


def _without_functions(optimizer: torch.optim.Optimizer, state: dict) -> dict:
    """Drop threshold schedules from a saved state: they are code, and a saved state is data."""
    groups = [{k: v for k, v in g.items() if not (k == "clip" and callable(v))} for g in state["param_groups"]]
    return {**state, "param_groups": groups}
