"""Recipes by name, with every number in sight: the papers' for ImageNet, one to fine-tune, one for 32-pixel images.

Each is a function that returns a TrainConfig and takes changes to it: `paper_nfnet("f1", batch_size=1024)`.
Sources: Brock et al. 2021 and the authors' experiment files, which are followed where the two differ. ImageNet is a
folder with train/, val/ and test/, which may be a link to val/: the authors have no third part.
"""

from collections.abc import Callable

from workbench.errors import WorkbenchError, unknown
from workbench.models.zoo import entry
from workbench.training.config import STREAMED, TrainConfig

# variant: dropout, RandAugment's level
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
# variant: dropout, weight decay
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
    """NFNet-F0 to F7 on ImageNet: 360 epochs of 4096, peak rate 1.6, AGC at 0.01."""
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
    """NF-ResNets on ImageNet as the authors' base experiment: 90 epochs of 1024, peak rate 0.4, no AGC."""
    if str(depth) not in _NF_RESNET:
        raise unknown("NF-ResNet", str(depth), _NF_RESNET)
    config = TrainConfig(
        model=f"nf_resnet{depth}",
        model_args={"stochastic_depth": 0.1, "dropout": 0.0},  # dropout must be given there, and is not
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
    """NF-RegNet-B0 to B5 on ImageNet: 360 epochs of 1024, rate 0.4 at any batch size, down to 0.001, no AGC."""
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
    """From weights pre-trained on more images to yours: 15,000 steps of 2048, rate 0.1, a third of it warm-up.

    As the paper fine-tunes on ImageNet: NFNets with SAM, weight decay, dropout and
    stochastic depth, ResNets with an average of the weights and none of these. Starts from the released weights of
    `model`, or from `weights=...`; give `data`, and for few images fewer `steps` and a smaller `batch_size`.
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
    """32-pixel images in memory, this project's own recipe: 30 epochs of 512, peak rate 0.4, AGC at 0.04.

    Its rate and threshold come from small studies (see LOG.md), so search them for a network of your own.
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
    """The recipe with some fields changed, and what hangs on them: one length takes the place of the other, another
    `image_size` is that of test images, too, and without `stream` its fields go.

    Raises: WorkbenchError for an unknown field or a value that it cannot take.
    """
    freed = {}
    if {"epochs", "steps"} & set(changes):
        freed |= {"epochs": None, "steps": None}
    if "image_size" in changes:
        freed["eval_size"] = None
    if changes.get("stream") is False:
        freed |= dict.fromkeys(STREAMED)
    return config.replace(**freed | changes)


def preset(text: str, **changes) -> TrainConfig:
    """A preset by its name, with its variant after a colon: "cifar", "paper_nfnet:f1", "finetune:nf_resnet50".

    Raises: WorkbenchError for an unknown preset or variant, naming the nearest.
    """
    name, colon, variant = text.partition(":")
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    if colon and not variant:
        raise WorkbenchError(f"the preset '{text}' names nothing after its colon: leave it out for the default.")
    return PRESETS[name](*([variant] if variant else []), **changes)
