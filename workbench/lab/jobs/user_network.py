"""BatchNorm out of a user's network, on the user's images: which threshold, which rate, and what it costs.

The steps of notebooks/own_network.ipynb, each a function of the one before. The network is one of the library's by
name, with its twin of the same skeleton, or a user's own, with what `normfree` makes of it. From
then on both are configurations as all others: searched, trained and kept by the same code.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from workbench.data import Dataset
from workbench.data.augment import normalize, seed_for
from workbench.errors import WorkbenchError
from workbench.lab.executors import channel
from workbench.lab.jobs.engines import is_planning
from workbench.lab.jobs.job import Arm
from workbench.lab.jobs.run_all import check, run_all, run_training
from workbench.lab.jobs.search import search
from workbench.lab.studies.parameters import Range
from workbench.lab.studies.session import Session
from workbench.models import zoo
from workbench.networks import NORMFREE, is_user_network, located, network_info
from workbench.optim import param_groups, suggest_clip
from workbench.optim.suggest import ClipSuggestion
from workbench.probes import gradient_noise_scale
from workbench.probes.noise import NoiseScale
from workbench.probes.preflight import Preflight, preflight
from workbench.training import TrainConfig, planned
from workbench.training.distributed import World
from workbench.training.inputs import Inputs, source
from workbench.training.setup import initial_model, pick_device, steps_of
from workbench.weights.checkpoints import load_checkpoint
from workbench.weights.released import is_cached

NF, BN = "NF+AGC", "BN"


def arms(
    model: str,
    *,
    control: str | None = None,
    skip_gain: float = 0.0,
    model_args: dict | None = None,
    weights: str | None = None,
    **settings,
) -> dict[str, TrainConfig]:
    """The two sides, {"NF+AGC": without BatchNorm, "BN": with it}, from either of their names; both are built and
    checked on the data.

    Args: `model` a name of the library, `package.module:function` or `file.py:function`; `control` the network with
    BatchNorm where the name does not lead to it; `model_args` what both are built with; `weights` that the
    normalizer-free network starts from: a file, a released model's name, or "released" for its own where they lie in
    the cache; `settings` are fields of TrainConfig.
    Raises: WorkbenchError for an unknown name, data that are not there, and a network that does not fit the data.
    """
    of_the_user = is_user_network(model)
    if of_the_user:
        with_norm = located(model).removeprefix(NORMFREE)
        without = NORMFREE + with_norm
    else:
        without, with_norm = _twins(model, control)
    args = dict(model_args or {})
    shared = {"scale_lr": False, **settings}
    if of_the_user:
        if weights not in (None, "released"):
            raise WorkbenchError(f"`weights` (={weights}) are for networks of this library: load yours in {with_norm}.")
        args = {"arguments": args} if args else {}
        args["image_size"] = source(TrainConfig(**shared)).train.images.shape[-1]
    elif weights == "released":
        weights = without if is_cached(without) else None
    nf = {"model": without, "model_args": {**args, "skip_gain": skip_gain}, "weights": None if of_the_user else weights}
    bn = {"model": with_norm, "model_args": args, "clip": None}
    configs = {NF: planned(TrainConfig(**{**shared, **nf})), BN: planned(TrainConfig(**{**shared, **bn}))}
    for config in configs.values():
        if not of_the_user:
            check(config)
        _check_fits(config)
    return configs


def _twins(model: str, control: str | None) -> tuple[str, str]:
    """(normalizer-free, BatchNorm) of the library's, from the name of either."""
    if network_info(model).norm == "batch":
        without, with_norm = f"nf_{model}", model
        if without not in zoo.MODELS:
            raise WorkbenchError(f"there is no {without} in this library: name a normalizer-free network.")
        return without, with_norm
    twin = control or next(
        (model.removeprefix(p) for p in ("nf_", "skipinit_", "fixup_") if model.startswith(p)), model
    )
    if control is None and (twin == model or twin not in zoo.MODELS):
        raise WorkbenchError(
            f"{model} has no twin with BatchNorm in this library: name what it shall be held against, "
            "control=resnet26_cifar for instance."
        )
    if network_info(twin).norm != "batch":
        raise WorkbenchError(f"`control` (={twin}) has no BatchNorm: name a network that has.")
    return model, twin


def _check_fits(config: TrainConfig) -> None:
    """Refuses a network that does not give a number a class for the images."""
    data = source(config)
    steps_of(config, len(data.train))
    if not is_user_network(config.model):
        return
    model, (x, _) = _built(config), next(iter(_Batches(config, 1)))
    try:
        with torch.no_grad():
            out = model.eval()(x[:2])
    except Exception as error:  # whatever a user's network does
        message = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        raise WorkbenchError(
            f"{config.model} does not run on images of shape {tuple(x[:2].shape)} ({type(error).__name__}: {message}): "
            "let it take `in_channels`, or choose another `image_size`."
        ) from error
    shape = tuple(getattr(out, "shape", ()))
    if shape != (len(x[:2]), len(data.classes)):
        raise WorkbenchError(
            f"{config.model} gives {shape or type(out).__name__} for {len(x[:2])} images, but {data.name} has "
            f"{len(data.classes)} classes: let the function take `num_classes`, and return logits (N, num_classes)."
        )
    if not hasattr(model.blocks, "__len__"):
        raise WorkbenchError(f"{config.model} has an attribute `blocks` without a length: give it another name.")


# ---- the data, and the networks before their first step


def counts(data: Dataset) -> pd.DataFrame:
    """Images of each class in each split: a row a class."""
    splits = {"train": data.train, "val": data.val, "test": data.test}
    n = {name: torch.bincount(split.labels, minlength=len(data.classes)) for name, split in splits.items()}
    return pd.DataFrame({"class": data.classes, **{name: c.tolist() for name, c in n.items()}})


def preflights(arms: Mapping[str, TrainConfig], images: int = 32) -> dict[str, Preflight]:
    """What each network does to the first validation images before its first step."""
    return {
        arm: dataclasses.replace(preflight(_built(config), _first_images(config, images)), name=config.model)
        for arm, config in arms.items()
    }


def _first_images(config: TrainConfig, n: int) -> Tensor:
    data = source(config)
    return normalize(data.val.images[:n], data.mean, data.std).to(pick_device(config.device))


def _built(config: TrainConfig) -> nn.Module:
    """The network that the training starts from, on its device."""
    device = pick_device(config.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed_for(config.seed, "init"))
        return initial_model(config.replace(progress=False), source(config)).to(device)


class _Batches:
    """The batches (x, y) of the first steps of a training, from the start again whenever they are asked for."""

    def __init__(self, config: TrainConfig, steps: int):
        self.steps = steps
        whole = config.replace(micro_batch=None)
        self.inputs = Inputs(whole, source(config), World(), pick_device(config.device))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (part.made() for parts in self.inputs.steps(self.steps) for part in parts)


# ---- threshold, search, confirmation


def suggested(config: TrainConfig, lr: float, steps: int = 60) -> ClipSuggestion:
    """A threshold for peak rate `lr` from a short run of a copy, on the batches that the training will see.

    Where that rate leaves a network without any gradient, a quarter of it is tried, and a quarter of that.
    """
    seen, quiet = _Batches(config, steps), {"progress": not channel.has_listener(), "seed": config.seed}
    for rate in (lr, lr / 4, lr / 16):
        model = _built(config)
        groups = param_groups(model, config.weight_decay)
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=config.momentum, nesterov=config.momentum > 0)
        try:
            return suggest_clip(model, seen, optimizer, steps=steps, eps=config.clip_eps, **quiet)
        except WorkbenchError:
            if rate == lr / 16:
                raise


def searched(
    arms: Mapping[str, TrainConfig],
    session: Session,
    *,
    lr: float | dict,
    clip: float | dict,
    trials: int,
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[str, TrainConfig]]:
    """As many trials for each side: over peak rate and threshold without BatchNorm, over the rate with it.

    Args: `lr` and `clip` a number, or a range {low, high, log}.
    Returns: all trials, a row each, and {arm: the configuration of its best trial} of those that had one.
    """
    tables, best = [], {}
    for arm, config in arms.items():
        space = {"lr": lr, "clip": clip} if arm == NF else {"lr": lr}

        def objective(point: Mapping, config=config, space=space) -> TrainConfig:
            chosen = {n: _two_digits(point[n]) if isinstance(v, dict) else float(v) for n, v in space.items()}
            return config.replace(**{"base_lr" if name == "lr" else name: v for name, v in chosen.items()})

        start = {name: middle(value) for name, value in space.items()}
        result = search(objective, space, trials=trials, session=session, seed=seed, arm=arm, start=[start])
        tables.append(result.trials)
        if result.best is not None:
            best[arm] = objective(dict(result.best))
    return pd.concat(tables, ignore_index=True), best


def middle(value: float | dict | Range) -> float:
    """The middle of a range, on its scale; a number is its own."""
    if isinstance(value, int | float):
        return float(value)
    r = Range.of(value)
    return float(np.sqrt(r.low * r.high)) if r.log else (r.low + r.high) / 2


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")


def confirmed(best: Mapping[str, TrainConfig], seeds: list[int], session: Session, weights: Path) -> pd.DataFrame:
    """The best of each side on fresh seeds, with the test split; the first without BatchNorm leaves its weights in the
    file `weights`."""
    fresh = [Arm(arm, config.replace(seed=s, evaluate_test=True)) for arm, config in best.items() for s in seeds]
    if NF in best and not is_planning():
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.unlink(missing_ok=True)  # of an earlier run in the same folder
        first = next(arm for arm in fresh if arm.label == NF)
        run_training(first.config, session, role="confirm", arm=NF, save=str(weights))
    table = run_all(fresh, session, role="confirm")
    if table.empty:
        return table
    if "test_acc" not in table:
        table["test_acc"] = np.nan
    return table.assign(test_acc=table.test_acc.fillna(table.val_acc))  # diverged: a guess, on either split


def noise_scale(config: TrainConfig, weights: Path, batches: int = 32) -> NoiseScale | None:
    """How many images a batch may have before larger ones buy little, at the end of the training (McCandlish et al.
    2018). None where the weights are not there."""
    if not weights.is_file():
        return None
    model = load_checkpoint(weights, _built(config.replace(weights=None)))
    size = min(config.batch_size, len(source(config).train) // 2)
    return gradient_noise_scale(model, nn.functional.cross_entropy, _Batches(config.replace(batch_size=size), batches))
