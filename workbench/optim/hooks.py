"""AGC around an optimizer: its hooks clip before every step and keep the step count.

Source: NFNet paper, section 3, and the authors' code, which clips the raw gradient before decay and momentum.
"""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from workbench.errors import WorkbenchError
from workbench.optim.clipping import Clipped, check_positive, clip_parts
from workbench.optim.settings import (
    Clip,
    refuse_lost_functions,
    refuse_second_value,
    restore,
    settings_of,
    take_steps,
    threshold,
    with_settings,
)
from workbench.optim.telemetry import AGCStats
from workbench.optim.wrappers import layers_of, refusal


class AGC:
    """Clip the gradients before every step of an optimizer.

    Example: ``AGC(torch.optim.SGD(param_groups(model, clip=0.01), lr=0.1))``.

    The "clip" of a parameter group is its threshold, and None exempts the group. Its "clip_eps" is the lower bound on
    |W_i|. `param_groups` writes both. The arguments of AGC apply to groups without these keys.

    Gradients must be final when ``step`` is called: all-reduced, accumulated, and unscaled if you use a GradScaler.
    With ``step(closure)`` AGC clips at the end of the closure.

    If the optimizer wraps another one (Accelerate, Opacus, Lookahead, ZeRO, two-step SAM), AGC clips before the steps
    of the inner one. A library that never calls ``step`` needs `clip_grad_agc_` before its own update.

    The optimizer's ``state_dict`` keeps the settings of the groups and the step count, but no functions. Make AGC
    before you load a state, so that functions stay. Keys that a loaded state lacks stay unchanged, too.

    Copy or pickle the optimizer together with its AGC: ``copy.deepcopy((model, optimizer, agc))``. The copy clips. A
    copy of the optimizer alone does not clip, because torch copies no hooks.

    Args:
        optimizer: An optimizer that steps once on dense gradients.
        clip: The threshold of groups without "clip", 0.01 by default. A number, or a function of the step from 0.
        eps: The lower bound on |W_i| of groups without "clip_eps", 1e-3 by default.

    Attributes:
        optimizer: The optimizer.
        steps: The number of steps so far. A step that a GradScaler skips does not count.
        stats: The AGCStats of the last step.

    Raises:
        WorkbenchError: At construction, if an argument differs from the value of a group, for LBFGS and SparseAdam, or
            for a wrapper without hooks. In ``step``, for scaled gradients. In ``load_state_dict``, if the state had a
            function as threshold and the optimizer has none.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip: Clip | None = None, eps: float | None = None):
        self.optimizer, self._layers = optimizer, layers_of(optimizer)
        inner = self._layers[-1]
        if isinstance(inner, torch.optim.LBFGS | torch.optim.SparseAdam):
            raise WorkbenchError(
                f"AGC needs an optimizer that steps once on dense gradients, got {type(inner).__name__}. "
                "Use SGD or AdamW."
            )
        refuse_second_value(inner.param_groups, "clip", "clip", clip)
        refuse_second_value(inner.param_groups, "eps", "clip_eps", eps)
        clip, eps = 0.01 if clip is None else clip, 1e-3 if eps is None else eps
        if not callable(clip):
            check_positive("clip", clip)
        check_positive("eps", eps)
        for i, group in enumerate(inner.param_groups):
            threshold(group, i, clip)
        self.clip, self.eps = clip, eps
        self._steps: int | Tensor = 0  # a tensor on the device if a GradScaler decides there which steps it skips
        self._stats: AGCStats | None = None
        self._clipped = False  # in the step that is in progress
        self._before: dict[int, list[dict]] = {}
        self._hooks = self._register()
        self._take_steps()

    def _register(self) -> list[RemovableHandle]:
        """Hook the steps of the innermost layer, and the states of all layers that have hooks."""
        handles = [handle for layer in self._layers[:-1] for handle in self._hook_states(layer)]
        inner = self._layers[-1]
        states = self._hook_states(inner)
        if not states or not getattr(type(inner).step, "hooked", False):  # torch marks the steps that run hooks
            for handle in handles + states:
                handle.remove()
            raise refusal(inner)
        steps = [inner.register_step_pre_hook(self._before_step), inner.register_step_post_hook(self._after_step)]
        return handles + states + steps

    def _hook_states(self, layer: torch.optim.Optimizer) -> list[RemovableHandle]:
        """Hook saving and loading. Return no handles if the layer lacks one of the hooks."""
        handles = []
        try:
            handles.append(layer.register_state_dict_post_hook(self._save))
            handles.append(layer.register_load_state_dict_pre_hook(self._before_load))
            handles.append(layer.register_load_state_dict_post_hook(self._after_load))
        except AttributeError:  # a wrapper that did not call Optimizer.__init__
            for handle in handles:
                handle.remove()
            return []
        return handles

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> tuple | None:
        self._take_steps()  # some optimizers load a state without hooks
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._clip()
            return None
        if getattr(closure, "clipped_by", None) is self:  # `step` of a subclass passes it on to that of its base
            return None
        if not callable(closure):
            raise WorkbenchError(
                f"AGC clips the `grad` of parameters, but `step` got {type(closure).__name__}. "
                "Call step() or step(closure), or clip_grad_agc_ before the step."
            )

        def clipped_closure() -> Any:
            loss = closure()
            self._clipped = False  # new gradients
            self._clip()
            return loss

        vars(clipped_closure)["clipped_by"] = self
        if "closure" in kwargs:
            return args, {**kwargs, "closure": clipped_closure}
        return (optimizer, clipped_closure, *args[2:]), kwargs

    def _clip(self) -> None:
        if getattr(self._layers[-1], "grad_scale", None) is not None:
            raise WorkbenchError(
                "AGC needs unscaled gradients, but a GradScaler has scaled them. "
                "Call scaler.unscale_(optimizer) before scaler.step(optimizer)."
            )
        stats = clip_parts(self._parts())
        if not self._clipped:  # else `step` of a subclass called that of its base, which runs the hooks again
            self._stats = stats
        self._clipped = True

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if self._clipped:
            found_inf = getattr(optimizer, "found_inf", None)  # a fused optimizer skips the step if it is 1
            self._steps = self._steps + (1 if found_inf is None else found_inf == 0)
        self._clipped = False

    def _parts(self) -> list[Clipped]:
        parts = []
        for i, group in enumerate(self._layers[-1].param_groups):
            setting = threshold(group, i, self.clip)
            if setting is None:
                continue
            clip = setting(self.steps) if callable(setting) else setting
            eps = group.get("clip_eps", self.eps)
            names = self._names(i, group)
            units = group.get("units")
            parts += [Clipped(p, name, clip, eps, units) for p, name in zip(group["params"], names, strict=True)]
        return parts

    def _names(self, number: int, group: dict) -> list[str]:
        """Return a name for each parameter of a group. Parameters that were appended later get numbers."""
        params, names = group["params"], _given_names(group)
        if len(names) > len(params):  # ZeRO gives the part of this process the names of the whole group
            wholes = self.optimizer.param_groups
            by_id = {id(p): n for g in wholes for p, n in zip(g["params"], _given_names(g), strict=False)}
            return [by_id.get(id(p), f"group {number}, {j}") for j, p in enumerate(params)]
        return [*names, *(f"group {number}, {j}" for j in range(len(names), len(params)))]

    def _save(self, optimizer: torch.optim.Optimizer, state: dict) -> dict:
        return with_settings(state, self.clip, self.eps, self.steps)

    def _before_load(self, optimizer: torch.optim.Optimizer, state: dict) -> None:
        refuse_lost_functions(optimizer.param_groups, state["param_groups"], self.clip)
        self._before[id(optimizer)] = settings_of(optimizer.param_groups)

    def _after_load(self, optimizer: torch.optim.Optimizer) -> None:
        restore(optimizer.param_groups, self._before.pop(id(optimizer)), self.clip, self.eps)
        self._take_steps(optimizer)

    def _take_steps(self, *layers: torch.optim.Optimizer) -> None:
        """Continue from the step count of a loaded state, if one of the layers has it. By default look in all."""
        for layer in layers or self._layers:
            steps = take_steps(layer.param_groups)
            self._steps = self._steps if steps is None else steps

    @property
    def steps(self) -> int:
        """The number of steps so far, without those that a GradScaler skipped."""
        self._steps = int(self._steps)
        return self._steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self._steps = steps

    @property
    def stats(self) -> AGCStats:
        """The norms of the last step. Warns if AGC has seen no step."""
        if self._stats is None:
            warnings.warn(
                f"AGC has seen no step of {type(self._layers[-1]).__name__}, so it has clipped nothing. If training "
                "does not call its `step`, call clip_grad_agc_ before the update.",
                stacklevel=2,
            )
            return AGCStats(seen=False)
        return self._stats

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
        self._hooks = []

    def __getstate__(self) -> dict:
        return {**vars(self), "_steps": self.steps, "_hooks": [], "hooked": bool(self._hooks)}

    def __setstate__(self, state: dict) -> None:
        hooked = state.pop("hooked")
        vars(self).update(state)
        if hooked:  # torch copies an optimizer without its hooks
            self._hooks = self._register()


def _given_names(group: dict) -> list[str]:
    return group.get("names") or group.get("param_names") or []
