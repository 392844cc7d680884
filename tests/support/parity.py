"""Distances of a model from the literal reference. test_networks.py expects none, and test_mutations.py large ones."""

import torch
import torch.nn.functional as F

from support import reference
from workbench.models.zoo import entry
from workbench.optim import AGC, param_groups
from workbench.probes import signal_propagation

SMALL = {"depth": (2, 1), "widths": (32, 48), "width": 1, "stochastic_depth": 0.0}
CASES = {
    "nf_resnet": ("nf_resnet50", SMALL, {"family": "nf_resnet", "pool": True, "activation": "relu", "se": False}),
    "nf_resnet with squeeze-excite": (
        "nf_resnet50",
        {**SMALL, "depth": (1, 2), "widths": (16, 32), "se_ratio": 0.25, "activation": "silu"},  # 16: no projection
        {"family": "nf_resnet", "pool": True, "activation": "silu", "se": True},
    ),
    "nfnet": (
        "nfnet_f0",
        {"depth": (1, 2, 1, 1), "widths": (16, 32, 32, 32), "group_size": 4, "stem": (4, 4, 8),
         "stochastic_depth": 0.0, "dropout": 0.0},
        {"family": "nfnet", "stem_strides": (2, 1, 1, 2), "activation": "gelu", "group_size": 4},
    ),
    "nfnet with one 3x3, no gates": (
        "nfnet_f0",
        {"depth": (1, 1), "widths": (32, 16), "width": 0.5, "group_size": 4, "stem": (4, 4, 8),
         "stochastic_depth": 0.0, "dropout": 0.0, "two_convs": False, "se_ratio": 0.0, "alpha": 0.5},
        {"family": "nfnet", "stem_strides": (2, 1, 1, 2), "activation": "gelu", "group_size": 4, "two_convs": False,
         "se": False, "alpha": 0.5},
    ),
    "nf_regnet": (
        "nf_regnet_b0",
        {"depth": (1, 2, 1), "widths": (16, 24, 88), "group_size": 4, "stochastic_depth": 0.0, "dropout": 0.0},
        {"family": "nf_regnet", "activation": "silu", "group_size": 4},
    ),
    "skipinit": ("skipinit_resnet50", SMALL, {"family": "skipinit", "activation": "relu"}),
    "fixup": ("fixup_resnet50", SMALL, {"family": "fixup", "activation": "relu"}),
    "resnet": ("resnet50", SMALL, {"family": "resnet", "activation": "relu"}),
}  # fmt: skip
SIZES = {"even": (32, 32), "odd": (75, 83)}


def build(case):
    """Build (a float64 model, its description for the reference). No parameter keeps a special starting value."""
    name, overrides, description = CASES[case]
    row = entry(name).build
    model = row.func(num_classes=7, **{**row.keywords, **overrides}).double()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "bias" in key or key.endswith(("gain", "scale")) or "norm" in key or key.startswith("linear"):
                p.add_(0.3 * torch.randn_like(p))
            if key.endswith("conv0.weight"):
                p[0] *= 1e-3  # a filter so small that the lower bound of N var matters
            if key.endswith("conv2.weight") and not p.any():  # FixUp's starts from zero
                p.add_(0.1 * torch.randn_like(p))
    return model, {**description, "depth": overrides["depth"]}


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def distances(model, description, size=(32, 32), training=True):
    """The largest relative distances to the reference: logits, features, trunk, its statistics, and gradients."""
    model.train(training)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    y = torch.tensor([1, 4])
    weights = {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}
    logits, features, trunk = reference.forward(weights, x, training=training, **description)

    seen = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: seen.append(out)) for block in model.blocks]
    pooled = []
    hooks.append(model.dropout.register_forward_pre_hook(lambda _m, args: pooled.append(args[0])))
    ours = model(x)
    for hook in hooks:
        hook.remove()
    F.cross_entropy(ours, y).backward()
    F.cross_entropy(logits, y).backward()
    statistics = signal_propagation(model, x)[["mean_sq", "var"]].to_numpy()
    literal = torch.tensor(reference.signal([h.detach() for h in trunk]), dtype=torch.float64)
    return {
        "logits": relative(ours, logits),
        "features": relative(pooled[0], features),
        "trunk": max(relative(a, b) for a, b in zip(seen, trunk[1:], strict=True)),
        "statistics": ((torch.tensor(statistics) - literal).abs() / literal.abs()).max().item(),
        "gradients": max(relative(p.grad, weights[k].grad) for k, p in model.named_parameters()),
    }


def update_distance(case, clip=0.02):
    """The largest relative distance to the reference after two steps of the recipe (groups, AGC, SGD)."""
    model, description = build(case)
    settings = {"lr": 0.3, "clip": clip, "weight_decay": 1e-2}
    groups = param_groups(model, weight_decay=settings["weight_decay"], clip=settings["clip"])
    optimizer = torch.optim.SGD(groups, lr=settings["lr"], momentum=0.9, nesterov=True)
    AGC(optimizer)
    weights = {k: v.detach().clone() for k, v in model.named_parameters()}
    start, momenta = dict(weights), {}
    for _ in range(2):
        x, y = torch.randn(3, 3, 35, 32, dtype=torch.float64), torch.tensor([1, 4, 0])
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        leaves = {k: v.requires_grad_() for k, v in weights.items()}
        F.cross_entropy(reference.forward(leaves, x, **description)[0], y).backward()
        gradients = {k: v.grad for k, v in leaves.items()}
        weights = {k: v.detach() for k, v in weights.items()}
        reference.sgd_agc_step(weights, gradients, momenta, **settings)
    return max(relative(p - start[k], weights[k] - start[k]) for k, p in model.named_parameters())
