"""All models by name: `create_model("nf_resnet50", num_classes=10)`.

The tables come from these sources:

- NFNet paper, table 1 and appendix.
- The authors' code: F7, the "plus" widths, NF-RegNet-B6 to B8, and the image sizes.
- timm, for its own nets.

The nets for small images were made for this project. Each of their NF-ResNets has a BatchNorm twin of the same shape.
"""

import fnmatch
import inspect
from dataclasses import dataclass
from functools import partial

from workbench.errors import unknown
from workbench.models.arguments import check_arguments
from workbench.models.fixup import FixUpResNet
from workbench.models.network import Network
from workbench.models.nf_regnet import NFRegNet
from workbench.models.nf_resnet import NFResNet
from workbench.models.nfnet import NFNet
from workbench.models.resnet import ResNet
from workbench.models.skipinit import SkipInitResNet
from workbench.models.timm_nets import TimmNet


@dataclass(frozen=True)
class Entry:
    """A row of the table of models.

    Attributes:
        build: Builds the model.
        train_size: Side of the training images, in pixels.
        test_size: Side of the test images, in pixels.
        eval_style: How test images are cut: "squash", "crop" or "whole", see workbench.data.preprocess.
        published: Top-1 and top-5 accuracy on ImageNet that was published with the released weights, in per cent.
    """

    build: partial[Network]
    train_size: int
    test_size: int
    eval_style: str = "crop"
    published: tuple[float, float] | None = None


# variant: train px, test px, dropout, published top-1 and top-5 (F6 with SAM)
_NFNET = {
    0: (192, 256, 0.2, (83.6, 96.8)),
    1: (224, 320, 0.3, (84.7, 97.1)),
    2: (256, 352, 0.4, (85.1, 97.3)),
    3: (320, 416, 0.4, (85.7, 97.5)),
    4: (384, 512, 0.5, (85.9, 97.6)),
    5: (416, 544, 0.5, (86.0, 97.6)),
    6: (448, 576, 0.5, (86.5, 97.9)),
    7: (480, 608, 0.5, None),
}
# variant: train px, test px, dropout, widths, depth
_NF_REGNET = {
    0: (192, 224, 0.2, (48, 104, 208, 440), (1, 3, 6, 6)),
    1: (224, 256, 0.2, (48, 104, 208, 440), (2, 4, 7, 7)),
    2: (240, 272, 0.3, (56, 112, 232, 488), (2, 4, 8, 8)),
    3: (288, 320, 0.3, (56, 128, 248, 528), (2, 5, 9, 9)),
    4: (320, 384, 0.4, (64, 144, 288, 616), (2, 6, 11, 11)),
    5: (384, 456, 0.4, (80, 168, 336, 704), (3, 7, 14, 14)),
    6: (448, 528, 0.5, (88, 184, 376, 792), (3, 8, 16, 16)),
    7: (512, 600, 0.5, (96, 208, 416, 880), (4, 10, 19, 19)),
    8: (600, 672, 0.5, (104, 232, 456, 968), (4, 11, 22, 22)),
}
_RESNET = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    288: (24, 24, 24, 24),
    600: (50, 50, 50, 50),
}
_TIMM_LIGHT = {"widths": (256, 512, 1536, 1536), "stem": (16, 32, 64, 128), "group_size": 64, "mid_ratio": 0.25}

# For 32 px images, and for 28 px digits (1 MMAC).
_SMALL = {"depth": (2, 2, 2, 2), "width": 1, "stem": (3, 1), "pool": False}
_TINY = {"depth": (1, 1, 1), "widths": (32, 64, 128), "width": 1, "stem": (3, 2), "pool": False}


def _nfnet(n: int, widths: tuple[int, ...], published: tuple[float, float] | None) -> Entry:
    train_size, test_size, dropout, _ = _NFNET[n]
    depth = tuple((n + 1) * d for d in (1, 2, 6, 3))
    return Entry(
        partial(NFNet, widths=widths, depth=depth, dropout=dropout), train_size, test_size, "squash", published
    )


def _by_depth(prefix: str, family: type[Network], deepest: int = 600) -> dict[str, Entry]:
    return {f"{prefix}{n}": Entry(partial(family, depth=d), 224, 224) for n, d in _RESNET.items() if n <= deepest}


def _nf_regnet(n: int) -> Entry:
    train_size, test_size, dropout, widths, depth = _NF_REGNET[n]
    return Entry(partial(NFRegNet, widths=widths, depth=depth, dropout=dropout), train_size, test_size)


def _eca_nfnet(n: int, train_size: int, test_size: int, final_channels: int) -> Entry:
    depth = tuple((n + 1) * d for d in (1, 2, 6, 3))
    build: partial[Network] = partial(TimmNet, depth=depth, final_channels=final_channels, se_ratio=None, **_TIMM_LIGHT)
    return Entry(build, train_size, test_size)


MODELS = {
    **{f"nfnet_f{n}": _nfnet(n, (256, 512, 1536, 1536), row[3]) for n, row in _NFNET.items()},
    **{f"nfnet_f{n}_plus": _nfnet(n, (384, 768, 2048, 2048), None) for n in _NFNET},
    **_by_depth("nf_resnet", NFResNet),
    **{f"nf_regnet_b{n}": _nf_regnet(n) for n in _NF_REGNET},
    **_by_depth("resnet", ResNet, deepest=200),
    **_by_depth("skipinit_resnet", SkipInitResNet, deepest=200),
    **_by_depth("fixup_resnet", FixUpResNet, deepest=200),
    "timm_nf_resnet50": Entry(
        partial(
            TimmNet,
            depth=(3, 4, 6, 3),
            widths=(256, 512, 1024, 2048),
            stem=(64,),
            stem_kernel=7,
            pool=True,
            mid_ratio=0.25,
            group_size=None,
            two_convs=False,
            final_channels=0,
            activation="relu",
            se_ratio=0.0,
        ),
        256,
        288,
    ),
    "timm_nf_regnet_b1": Entry(
        partial(
            TimmNet,
            depth=(2, 4, 7, 7),
            widths=(40, 80, 160, 328),
            stem=(40,),
            mid_ratio=2.25,
            group_size=8,
            regnet=True,
            two_convs=False,
            final_channels=960,
        ),
        256,
        288,
    ),
    "timm_nfnet_l0": Entry(
        partial(TimmNet, depth=(1, 2, 6, 3), final_channels=2304, se_ratio=0.25, **_TIMM_LIGHT), 224, 288
    ),
    "timm_eca_nfnet_l0": _eca_nfnet(0, 224, 288, 2304),
    "timm_eca_nfnet_l1": _eca_nfnet(1, 256, 320, 3072),
    "timm_eca_nfnet_l2": _eca_nfnet(2, 320, 384, 3072),
    "nfnet_micro": Entry(
        partial(
            NFNet,
            widths=(64, 128, 256, 256),
            depth=(1, 1, 2, 1),
            group_size=16,
            stem=(8, 16, 16),
            stem_strides=(1, 1, 1, 2),
            dropout=0.0,
            stochastic_depth=0.0,
        ),
        32,
        32,
        "whole",
    ),
    "nf_resnet26_cifar": Entry(partial(NFResNet, stochastic_depth=0.0, **_SMALL), 32, 32, "whole"),
    "resnet26_cifar": Entry(partial(ResNet, **_SMALL), 32, 32, "whole"),
    "nf_resnet_tiny": Entry(partial(NFResNet, stochastic_depth=0.0, **_TINY), 28, 28, "whole"),
    "resnet_tiny": Entry(partial(ResNet, **_TINY), 28, 28, "whole"),
}


def create_model(name: str, num_classes: int = 1000, **overrides) -> Network:
    """Build a model, initialised from torch's global random generator.

    Also works under torch.device("meta").

    Args:
        name: A name of `list_models()`.
        num_classes: Classes. With 0 the model returns the pooled features.
        overrides: Arguments of the family's constructor, such as in_channels=1, activation="silu", skip_gain=1.0.

    Returns:
        The model. Its `recipe` holds the name and the overrides, so that a saved file can build it again.

    Raises:
        WorkbenchError: For an unknown name or override, with the nearest known one, and for a value that breaks its
            rule. It is a ValueError.
    """
    build = entry(name).build
    known = set(inspect.signature(build.func).parameters) - {"depth", "num_classes"}
    for key in overrides:
        if key not in known:
            raise unknown(f"override of {name}", key, known)
    defaults = {k: p.default for k, p in inspect.signature(build.func).parameters.items()}
    given = {**defaults, **build.keywords, "num_classes": num_classes, **overrides}
    check_arguments({k: v for k, v in given.items() if v is not inspect.Parameter.empty})
    model = build(num_classes=num_classes, **overrides)
    model.recipe = {"name": name, **overrides}
    return model


def entry(name: str) -> Entry:
    """Return the row of a model.

    Raises:
        WorkbenchError: If the name is unknown. The message has the nearest known one.
    """
    if not isinstance(name, str) or name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name]


def list_models(pattern: str = "*") -> list[str]:
    """List the names that match a shell pattern, in the order of the table."""
    return [name for name in MODELS if fnmatch.fnmatch(name, pattern)]
