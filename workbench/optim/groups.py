"""The parameter groups of the authors: which parameters are decayed, and which are clipped.

Source: the authors' experiment code.

    weights                   decayed and clipped
    gains and biases          clipped, not decayed
    the classifier's weight   decayed, not clipped (its bias is in gains and biases)
"""

import fnmatch
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from workbench.errors import WorkbenchError, unknown
from workbench.optim.classifier import classifier_weights, named_weights
from workbench.optim.names import plain_names
from workbench.optim.settings import SETTINGS, check_setting
from workbench.optim.sharded import WHOLE, is_one_unit, refuse_flattened
from workbench.optim.units import units_of

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def param_groups(
    model: nn.Module,
    weight_decay: float = 2e-5,
    clip=0.01,
    overrides: Mapping[str, Mapping] | None = None,
    *,
    classifier: str | Iterable[str] | None = None,
    example: object = None,
) -> list[dict]:
    """Make three parameter groups for any torch.optim optimizer.

    `AGC(optimizer)` reads their "clip".

    The rule holds for our models and for foreign ones:

    - A parameter that is a scalar or vector after removing its size-1 axes is a gain or bias.
    - The classifier is what produces the output, whatever its name and type. Several heads are all exempt, and so is a
      head that shares its weight with an embedding.
    - Every other parameter is a weight.

    Parameters that do not require a gradient are left out. The keys "name" and "names" of a group say what it holds,
    and `groups_table` shows the choice. Names come without the prefixes of wrappers, such as torch.compile's.

    Args:
        model: Any nn.Module.
        weight_decay: Decay of weights and the classifier.
        clip: The threshold of weights, gains and biases: a number, a function of the step from 0, or None (exempt).
        overrides: Settings by parameter name, such as ``{"stage4": {"clip": None}}``. The last pattern that matches
            wins. A pattern is a shell pattern (``blocks.3.*``), or ``vectors`` for gains and biases. In our models
            ``stage4`` and ``first_conv`` are patterns too, for the paper's study of which layers to clip. The settings
            are clip, clip_eps, weight_decay and lr.
        classifier: Names or patterns of the exempt weights or their layers, instead of following the output. Use
            ``()`` if there is no classifier.
        example: An input, or a tuple or dict of inputs. It is used if the output cannot be followed without. The
            network then runs on tensors without data.

    Returns:
        The groups that are not empty: weights, gains and biases, classifier. A group is split if overrides differ. It
        is also split for layers whose units are not rows, such as ConvTranspose2d. The key "units" tells AGC so.

    Raises:
        WorkbenchError: For a setting that is negative or not finite, a pattern that matches nothing, an unknown
            setting, lazy or flattened parameters, or if nothing decides which weight is the classifier.
    """
    check_setting("weight_decay", weight_decay)
    check_setting("clip", clip)
    kinds = {
        "weights": {"weight_decay": weight_decay, "clip": clip},
        "gains_biases": {"weight_decay": 0.0, "clip": clip},
        "classifier": {"weight_decay": weight_decay, "clip": None},
    }
    params = dict(model.named_parameters())
    refuse_flattened(params.values(), "param_groups cannot sort")
    if any(is_lazy(p) for p in params.values()):
        raise WorkbenchError(
            f"Parameters must have a shape, but {type(model).__name__} has lazy layers. Run one batch through it first."
        )
    plain = dict(zip(params, plain_names(list(params)), strict=True))
    aliases = _aliases(model)
    by_name = _settings_by_name(aliases, overrides or {})
    if classifier is None:
        heads = set(classifier_weights(model, example))
    else:
        heads = {plain[name] for name in named_weights(aliases, params, classifier)}
    groups: dict[tuple, dict] = {}
    units = units_of(model)
    for name, p in params.items():
        if not p.requires_grad:
            continue
        layout = {"units": units[id(p)]} if id(p) in units and not is_one_unit(p) else {}
        gain = is_one_unit(p) or layout.get("units") == WHOLE
        kind = "classifier" if plain[name] in heads else "gains_biases" if gain else "weights"
        settings = {**by_name.get(name, {}), **layout}
        key = (kind, *sorted(settings.items(), key=lambda item: item[0]))
        label = ", ".join([kind, *(f"{k} {v}" for k, v in settings.items())])
        group = groups.setdefault(key, {"name": label, **kinds[kind], **settings, "names": [], "params": []})
        group["names"].append(plain[name])
        group["params"].append(p)
    order = list(kinds)
    ordered = sorted(groups.values(), key=lambda group: order.index(group["name"].partition(",")[0]))
    log.info("%s", groups_table(ordered).to_string())
    log.info("classifier weight, exempt from clipping: %s", ", ".join(sorted(heads)) or "none")
    return ordered


def groups_table(groups: Iterable[dict] | torch.optim.Optimizer) -> "pd.DataFrame":
    """Tabulate the parameters of groups or of an optimizer.

    Args:
        groups: Parameter groups, or an optimizer that has them.

    Returns:
        One row per parameter with the columns parameter, shape, group, weight_decay and clip.
    """
    if isinstance(groups, torch.optim.Optimizer):
        groups = groups.param_groups
    rows = [
        {
            "parameter": name,
            "shape": "x".join(map(str, p.shape)) or "scalar",
            "group": group.get("name", str(i)),
            "weight_decay": group.get("weight_decay", 0.0),
            "clip": _shown(group.get("clip", "AGC's")),
        }
        for i, group in enumerate(groups)
        for name, p in zip(_names(group), group["params"], strict=True)
    ]
    import pandas as pd  # late, because it takes a fifth of torch's time

    return pd.DataFrame(rows, columns=["parameter", "shape", "group", "weight_decay", "clip"])


def _names(group: dict) -> list[str]:
    """Return the names of a group's parameters. Those that were appended later get numbers."""
    names = list(group.get("names") or [])
    return names + [str(i) for i in range(len(names), len(group["params"]))]


def _aliases(model: nn.Module) -> dict[str, set[str]]:
    """Map each parameter to all its names, with and without wrappers, and to stage1 ..., first_conv and vectors."""
    params = dict(model.named_parameters())
    first_name = {id(p): name for name, p in params.items()}
    words: dict[str, set[str]] = {name: {"vectors"} if is_one_unit(p) else set() for name, p in params.items()}
    every = list(model.named_parameters(remove_duplicate=False))
    for (name, p), plain in zip(every, plain_names([name for name, _ in every]), strict=True):
        words[first_name[id(p)]] |= {name, plain}
    for _, module in model.named_modules():
        stage = getattr(module, "stage", None)
        if isinstance(stage, int):
            for p in module.parameters():
                words[first_name[id(p)]].add(f"stage{stage + 1}")
    first = next((name for name, p in params.items() if p.ndim >= 3), None)
    if first is not None:
        home = first.rpartition(".")[0]
        for name in params:
            if name.rpartition(".")[0] == home:
                words[name].add("first_conv")
    return words


def _settings_by_name(aliases: dict[str, set[str]], overrides: Mapping[str, Mapping]) -> dict[str, dict]:
    by_name: dict[str, dict] = {}
    for pattern, settings in overrides.items():
        for key in settings:
            if key not in SETTINGS:
                raise unknown(f"setting of the override '{pattern}'", key, SETTINGS)
            check_setting(key, settings[key], f" of the override '{pattern}'")
        matched = [n for n, words in aliases.items() if any(fnmatch.fnmatch(word, pattern) for word in words)]
        if not matched:
            raise unknown("parameter pattern", pattern, {word for words in aliases.values() for word in words})
        for name in matched:
            by_name.setdefault(name, {}).update(settings)
    return by_name


def _shown(clip) -> str:
    if clip is None or callable(clip):
        return "exempt" if clip is None else "schedule"
    return f"{clip:g}" if isinstance(clip, float) else str(clip)
