"""Parameter names without the prefixes of wrappers: compiled, distributed, checkpointed and Lightning networks."""

from collections.abc import Sequence

from torch import nn

INSIDE = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")  # torch reserves them, at any depth
OUTSIDE = ("module", "model")  # a prefix of a wrapper only if all names have it


def inner_name(name: str) -> str:
    """Remove the prefixes that torch reserves for wrappers, such as ``_orig_mod.``."""
    return ".".join(part for part in name.split(".") if part not in INSIDE)


def plain_names(names: Sequence[str]) -> list[str]:
    """Remove the prefixes of wrappers from the parameter names of one network.

    Args:
        names: The names of all parameters. ``module.`` and ``model.`` are prefixes if every name begins with them.

    Returns:
        The names in the same order, such as ``fc.weight`` for ``module._orig_mod.fc.weight``.
    """
    parts = [inner_name(name).split(".") for name in names]
    while parts and parts[0][0] in OUTSIDE and all(p[0] == parts[0][0] and len(p) > 1 for p in parts):
        parts = [p[1:] for p in parts]
    return [".".join(p) for p in parts]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside the wrappers of torch, such as those of torch.compile and DistributedDataParallel."""
    while type(model).__module__.startswith("torch."):
        children = dict(model.named_children())
        if len(children) != 1 or not children.keys() & {"module", *INSIDE}:
            break
        (model,) = children.values()
    return model
