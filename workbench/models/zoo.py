"""Every model by name: `create_model("nf_resnet50", num_classes=10)`.

The tables are the papers' (NFNet table 1 and appendix; the authors' code for F7 and the "plus" widths). The nets for
small images are this project's own; each NF net has a BatchNorm twin of the same shape.
"""

import fnmatch
import inspect
from functools import partial

from torch import nn

from workbench.errors import WorkbenchError, unknown
from workbench.models.nf_resnet import NFResNet
from workbench.models.nfnet import NFNet
from workbench.models.resnet import ResNet

_DROPOUT = (0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5)  # NFNet-F0 ... F7
_DEPTH = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    288: (24, 24, 24, 24),
    600: (50, 50, 50, 50),
}

# For 32 px images, and still smaller ones (28 px digits, 1 MMAC).
_SMALL = {"depth": (2, 2, 2, 2), "width": 1, "stem": (3, 1), "pool": False}
_TINY = {"depth": (1, 1, 1), "widths": (32, 64, 128), "width": 1, "stem": (3, 2), "pool": False}

MODELS = {
    **{
        f"nfnet_f{n}": partial(
            NFNet, width=(256, 512, 1536, 1536), depth=[(n + 1) * d for d in (1, 2, 6, 3)], dropout=dropout
        )
        for n, dropout in enumerate(_DROPOUT)
    },
    **{
        f"nfnet_f{n}_plus": partial(
            NFNet, width=(384, 768, 2048, 2048), depth=[(n + 1) * d for d in (1, 2, 6, 3)], dropout=dropout
        )
        for n, dropout in enumerate(_DROPOUT)
    },
    **{f"nf_resnet{n}": partial(NFResNet, depth) for n, depth in _DEPTH.items()},
    **{f"resnet{n}": partial(ResNet, depth) for n, depth in _DEPTH.items() if n <= 200},
    "nfnet_micro": partial(
        NFNet,
        width=(64, 128, 256, 256),
        depth=(1, 1, 2, 1),
        group_size=16,
        stem=(8, 16, 16),
        stem_strides=(1, 1, 1, 2),
        dropout=0.0,
        stochastic_depth=0.0,
    ),
    "nf_resnet26_cifar": partial(NFResNet, stochastic_depth=0.0, **_SMALL),
    "resnet26_cifar": partial(ResNet, **_SMALL),
    "nf_resnet_tiny": partial(NFResNet, stochastic_depth=0.0, **_TINY),
    "resnet_tiny": partial(ResNet, **_TINY),
}


def create_model(name: str, num_classes: int = 1000, **overrides) -> nn.Module:
    """Builds a model, randomly initialised from torch's global generator; under torch.device("meta") too.

    Args: `overrides` are arguments of the family's constructor, e.g. in_channels=1, activation="silu", skip_gain=1.0.
    Raises: WorkbenchError (a ValueError) for an unknown name or override, naming the nearest known one.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    build = MODELS[name]
    known = set(inspect.signature(build.func).parameters) - {"depth", "num_classes"}
    for key in overrides:
        if key not in known:
            raise unknown(f"override of {name}", key, known)
    if num_classes < 1:
        raise WorkbenchError(f"`num_classes` (={num_classes}) must be at least 1.")
    return build(num_classes=num_classes, **overrides)


def list_models(pattern: str = "*") -> list[str]:
    """The names that match a shell pattern, in the order of the table."""
    return [name for name in MODELS if fnmatch.fnmatch(name, pattern)]
