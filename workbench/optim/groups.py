"""Who is decayed and who is clipped: the parameter groups of the authors.

Source: the authors' experiment code.  weights: decayed and clipped;  gains and biases: clipped, not decayed;  the
classifier's weight: decayed, never clipped (its bias is in gains and biases).
"""

import logging

from torch import nn

from workbench.errors import WorkbenchError

log = logging.getLogger(__name__)


def param_groups(model: nn.Module, weight_decay: float = 2e-5, clip: float | None = 0.01) -> list[dict]:
    """Three parameter groups for any torch.optim optimizer; `AGC` reads their "clip" (None: not clipped).

    The rule, for our models and foreign ones alike: what is a scalar or vector after removing its size-1 axes is a
    gain or bias; the classifier's weight is that of the last nn.Linear with a name that ends in linear, fc, head or
    classifier, else of the last nn.Linear; everything else is a weight. Parameters that do not require a gradient are
    left out. Each group says what it holds under "name" and "names", and the choice is logged.
    """
    if weight_decay < 0:
        raise WorkbenchError(f"`weight_decay` (={weight_decay}) must be at least 0.")
    head = classifier_weight(model)
    weights, vectors, classifier = [], [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (classifier if name == head else vectors if p.squeeze().ndim <= 1 else weights).append((name, p))
    groups = [
        {"name": "weights", "weight_decay": weight_decay, "clip": clip, "members": weights},
        {"name": "gains_biases", "weight_decay": 0.0, "clip": clip, "members": vectors},
        {"name": "classifier", "weight_decay": weight_decay, "clip": None, "members": classifier},
    ]
    for group in groups:
        members = group.pop("members")
        group["names"] = [name for name, _ in members]
        group["params"] = [p for _, p in members]
        log.info(
            "%s: %d tensors, weight decay %g, clip %s",
            group["name"],
            len(members),
            group["weight_decay"],
            group["clip"],
        )
    log.info("classifier weight, exempt from clipping: %s", head or "none found")
    return [group for group in groups if group["params"]]


def classifier_weight(model: nn.Module) -> str | None:
    """The name of the classifier's weight, or None where there is no nn.Linear."""
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    named = [name for name in linears if name.rpartition(".")[2] in ("linear", "fc", "head", "classifier")]
    found = (named or linears or [None])[-1]
    return None if found is None else f"{found}.weight".lstrip(".")
