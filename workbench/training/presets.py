"""Recipes by name: the papers' for ImageNet, one for fine-tuning, one for 32-pixel images.

Each preset is a function that returns a TrainConfig and accepts changes: `paper_nfnet("f1", batch_size=1024)`.
Sources: Brock et al. 2021 and the authors' experiment files. Where the two differ, the files decide.
ImageNet is a folder with train/, val/ and test/. The last may be a link to val/: the authors have no third split.
"""

from collections.abc import Callable

from workbench.errors import WorkbenchError, unknown
from workbench.models.zoo import entry
from workbench.training.config import STREAMED, TrainConfig

# by variant: dropout, RandAugment's level
_NFNET = {
    "f0": (0.2, 5.0),
    "f1": (0.3, 10.0),
    "f2": (0.4, 10.0),
    "f3": (0.4, 15.0),
    "f4": (0.5, 15.0),
    "f5": (0.5, 15.0),
    "f6": (0.5, 15.0),
    "f7": (0.5, 15.0),
}
# by variant: dropout, weight decay
_NF_REGNET = {
    "b0": (0.2, 5e-5),
    "b1": (0.2, 6e-5),
    "b2": (0.3, 7e-5),
    "b3": (0.3, 8e-5),
    "b4": (0.4, 9e-5),
    "b5": (0.4, 1e-4),
}
_NF_RESNET = ("50", "101", "152", "200", "288", "600")


def paper_nfnet(variant: str = "f0", **changes) -> TrainConfig:
    """NFNet-F0 to F7 on ImageNet: 360 epochs, batch size 4096, peak rate 1.6, AGC at 0.01.

    Args:
        variant: f0 to f7.
        **changes: Fields of TrainConfig.

    Raises:
        WorkbenchError: For an unknown variant or field, or a value that is not allowed.
    """
    if variant not in _NFNET:
        raise unknown("NFNet", variant, _NFNET)
    dropout, level = _NFNET[variant]
    name = f"nfnet_{variant}"
    config = TrainConfig(
        model=name,
        model_args={"stochastic_depth": 0.25, "dropout": dropout},
        data="imagenet",
        stream=True,
        image_size=entry(name).train_size,
        eval_size=entry(name).test_size,
        batch_size=4096,
        epochs=360.0,
        base_lr=0.1,  # 1.6 at 4096
        warmup=5 / 360,  # 5 epochs
        final_lr=0.0,
        momentum=0.9,
        weight_decay=2e-5,
        clip=0.01,
        clip_eps=1e-3,
        label_smoothing=0.1,
        mix=True,
        mixup_alpha=0.2,
        rand_augment=level,
        rand_augment_layers=4,
        ema=0.99999,
        precision="bfloat16_copies",
    )
    return changed(config, changes)


def paper_nf_resnet(depth: str = "50", **changes) -> TrainConfig:
    """NF-ResNets on ImageNet: 90 epochs, batch size 1024, peak rate 0.4, no AGC.

    Source: the authors' base experiment.

    Args:
        depth: 50, 101, 152, 200, 288 or 600.
        **changes: Fields of TrainConfig.

    Raises:
        WorkbenchError: For an unknown depth or field, or a value that is not allowed.
    """
    if str(depth) not in _NF_RESNET:
        raise unknown("NF-ResNet", str(depth), _NF_RESNET)
    config = TrainConfig(
        model=f"nf_resnet{depth}",
        model_args={"stochastic_depth": 0.1, "dropout": 0.0},  # the authors' file requires a dropout but sets none
        data="imagenet",
        stream=True,
        image_size=224,
        eval_size=224,
        batch_size=1024,
        epochs=90.0,
        base_lr=0.1,  # 0.4 at 1024
        warmup=5 / 90,
        final_lr=0.0,
        momentum=0.9,
        weight_decay=1e-4,
        clip=None,
        label_smoothing=0.1,
        precision="bfloat16_copies",
    )
    return changed(config, changes)


def paper_nf_regnet(variant: str = "b0", **changes) -> TrainConfig:
    """NF-RegNet-B0 to B5 on ImageNet: 360 epochs, batch size 1024, peak rate 0.4, no AGC.

    The peak rate is the same at every batch size, and the rate ends at 0.001.

    Args:
        variant: b0 to b5.
        **changes: Fields of TrainConfig.

    Raises:
        WorkbenchError: For an unknown variant or field, or a value that is not allowed.
    """
    if variant not in _NF_REGNET:
        raise unknown("NF-RegNet", variant, _NF_REGNET)
    dropout, weight_decay = _NF_REGNET[variant]
    name = f"nf_regnet_{variant}"
    config = TrainConfig(
        model=name,
        model_args={"stochastic_depth": 0.1, "dropout": dropout},
        data="imagenet",
        stream=True,
        image_size=entry(name).train_size,
        eval_size=entry(name).test_size,
        batch_size=1024,
        epochs=360.0,
        base_lr=0.4,
        scale_lr=False,
        warmup=5 / 360,
        final_lr=0.001,
        momentum=0.9,
        weight_decay=weight_decay,
        clip=None,
        label_smoothing=0.1,
        mix=True,
        mixup_alpha=0.2,
        ema=0.99999,
        precision="bfloat16_copies",
    )
    return changed(config, changes)


def finetune(model: str = "nfnet_f0", **changes) -> TrainConfig:
    """Fine-tune pre-trained weights: 15,000 steps, batch size 2048, peak rate 0.1.

    The first third of the steps is warm-up. The recipe is the paper's for fine-tuning on ImageNet. NFNets use SAM,
    weight decay, dropout and stochastic depth. ResNets use an average of the weights and none of these.

    Args:
        model: The network. Training starts from its released weights, or from `weights=...`.
        **changes: Fields of TrainConfig. Set `data`, and for few images fewer `steps` and a smaller `batch_size`.

    Raises:
        WorkbenchError: For an unknown network or field, or a value that is not allowed.
    """
    size = entry(model).test_size
    common = {
        "model": model,
        "weights": model,
        "stream": True,
        "data": "imagenet",
        "image_size": size,
        "eval_size": size,
        "batch_size": 2048,
        "steps": 15_000,
        "base_lr": 0.1,
        "scale_lr": False,
        "warmup": 5_000 / 15_000,
        "final_lr": 0.0,
        "momentum": 0.9,
        "label_smoothing": 0.1,
        "precision": "bfloat16_copies",
    }
    if model.startswith("nfnet"):
        config = TrainConfig(
            **common,
            model_args={"stochastic_depth": 0.1, "dropout": 0.25},
            weight_decay=1e-5,
            clip=0.01,
            clip_eps=1e-3,
            sam_rho=0.05,
        )
    else:
        config = TrainConfig(
            **common,
            model_args={"stochastic_depth": 0.0, "dropout": 0.0},
            weight_decay=0.0,
            clip=None,
            ema=0.9999,
        )
    return changed(config, changes)


def cifar(model: str = "nf_resnet26_cifar", **changes) -> TrainConfig:
    """32-pixel images in memory: 30 epochs, batch size 512, peak rate 0.4, AGC at 0.04.

    This recipe is from this project. Its rate and threshold come from small studies (see LOG.md), so search both again
    for your network.

    Args:
        model: The network.
        **changes: Fields of TrainConfig.

    Raises:
        WorkbenchError: For an unknown network or field, or a value that is not allowed.
    """
    config = TrainConfig(
        model=model,
        model_args={},
        data="cifar10",
        batch_size=512,
        epochs=30.0,
        base_lr=0.2,  # 0.4 at 512
        warmup=0.1,
        final_lr=0.0,
        momentum=0.9,
        weight_decay=5e-4,
        clip=0.04,
        clip_eps=1e-3,
        label_smoothing=0.1,
        flip=True,
        shift=4,
        cutout=8,
        ema=0.999,
        precision="float32",
    )
    return changed(config, changes)


PRESETS: dict[str, Callable[..., TrainConfig]] = {
    f.__name__: f for f in (paper_nfnet, paper_nf_resnet, paper_nf_regnet, finetune, cifar)
}


def changed(config: TrainConfig, changes: dict) -> TrainConfig:
    """Change fields of a recipe, and reset the fields that depend on them.

    `epochs` resets `steps`, and `steps` resets `epochs`. `image_size` resets `eval_size`. `stream=False` resets the
    fields that need `stream`.

    Args:
        config: The recipe.
        changes: Fields of TrainConfig, by name.

    Raises:
        WorkbenchError: For an unknown field, or a value that is not allowed.
    """
    reset = {}
    if {"epochs", "steps"} & set(changes):
        reset |= {"epochs": None, "steps": None}
    if "image_size" in changes:
        reset["eval_size"] = None
    if changes.get("stream") is False:
        reset |= dict.fromkeys(STREAMED)
    return config.replace(**reset | changes)


def preset(text: str, **changes) -> TrainConfig:
    """Return a preset by its name.

    Args:
        text: The name, with a variant or network after a colon: "cifar", "paper_nfnet:f1", "finetune:nf_resnet50".
        **changes: Fields of TrainConfig.

    Raises:
        WorkbenchError: For an unknown preset or variant, with the nearest name.
    """
    name, colon, variant = text.partition(":")
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    if colon and not variant:
        raise WorkbenchError(f"Preset '{text}' has nothing after its colon. Leave out the colon for the default.")
    return PRESETS[name](*([variant] if variant else []), **changes)
