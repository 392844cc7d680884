"""Remove BatchNorm from a user's network: which threshold, which rate, and what it costs.

These are the steps of notebooks/own_network.ipynb, on the user's images. The network is a model of the library with its
twin of the same skeleton, or a user's network with what `normfree` makes of it. Both are ordinary configurations,
which the same code searches, trains and keeps.
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
from workbench.training.first_batch import check_networks
from workbench.training.inputs import Inputs, source
from workbench.training.setup import example_input, initial_model, pick_device, steps_of
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
    """Configure both sides of the comparison, from the name of either network.

    Both are built and checked on the data.

    Args:
        model: A model of the library, `package.module:function` or `file.py:function`.
        control: The network with BatchNorm, if the name does not lead to it.
        skip_gain: Initial gain of the residual branches without BatchNorm.
        model_args: Arguments that both networks are built with.
        weights: Weights that the network without BatchNorm starts from: a file, or a released model's name.
            "released": its own released weights if they are in the cache.
        **settings: Fields of TrainConfig.

    Returns:
        {"NF+AGC": without BatchNorm, "BN": with it}.

    Raises:
        WorkbenchError: If a name is unknown, the data is missing, or a network does not fit the data.
    """
    user_network = is_user_network(model)
    if user_network:
        with_norm = located(model).removeprefix(NORMFREE)
        without = NORMFREE + with_norm
    else:
        without, with_norm = _twins(model, control)
    args = dict(model_args or {})
    shared = {"scale_lr": False, **settings}
    if user_network:
        if weights not in (None, "released"):
            raise WorkbenchError(
                f"`weights` is only for networks of this library, got {weights}. Load your weights in {with_norm}."
            )
        args = {"arguments": args} if args else {}
        args["image_size"] = source(TrainConfig(**shared)).train.images.shape[-1]
    elif weights == "released":
        weights = without if is_cached(without) else None
    nf = {
        "model": without,
        "model_args": {**args, "skip_gain": skip_gain},
        "weights": None if user_network else weights,
    }
    bn = {"model": with_norm, "model_args": args, "clip": None}
    configs = {NF: planned(TrainConfig(**{**shared, **nf})), BN: planned(TrainConfig(**{**shared, **bn}))}
    for config in configs.values():
        if not user_network:
            check(config)
        _check_fits(config)
    return configs


def _twins(model: str, control: str | None) -> tuple[str, str]:
    """Return the library models without and with BatchNorm, from the name of either."""
    if network_info(model).norm == "batch":
        without, with_norm = f"nf_{model}", model
        if without not in zoo.MODELS:
            raise WorkbenchError(f"{model} has no twin {without} in this library. Name a normalizer-free network.")
        return without, with_norm
    twin = control or next(
        (model.removeprefix(p) for p in ("nf_", "skipinit_", "fixup_") if model.startswith(p)), model
    )
    if control is None and (twin == model or twin not in zoo.MODELS):
        raise WorkbenchError(
            f"{model} has no twin with BatchNorm in this library. Name the network to compare with, "
            "such as control=resnet26_cifar."
        )
    if network_info(twin).norm != "batch":
        raise WorkbenchError(f"`control` must be a network with BatchNorm, got {twin}. Name another one.")
    return model, twin


def _check_fits(config: TrainConfig) -> None:
    """Check that there are enough images for a batch, and that a user's network takes them."""
    steps_of(config, len(source(config).train))
    check_networks([config])


# ---- the data, and the networks before their first step


def counts(data: Dataset) -> pd.DataFrame:
    """Count the images of each class in each split: one row per class."""
    splits = {"train": data.train, "val": data.val, "test": data.test}
    n = {name: torch.bincount(split.labels, minlength=len(data.classes)) for name, split in splits.items()}
    return pd.DataFrame({"class": data.classes, **{name: c.tolist() for name, c in n.items()}})


def preflights(arms: Mapping[str, TrainConfig], images: int = 32) -> dict[str, Preflight]:
    """Judge the signals of each untrained network on the first validation images, by arm."""
    return {
        arm: dataclasses.replace(preflight(_built(config), _first_images(config, images)), name=config.model)
        for arm, config in arms.items()
    }


def _first_images(config: TrainConfig, n: int) -> Tensor:
    data = source(config)
    return normalize(data.val.images[:n], data.mean, data.std).to(pick_device(config.device))


def _built(config: TrainConfig) -> nn.Module:
    """Build the network that the training starts from, on its device."""
    device = pick_device(config.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed_for(config.seed, "init"))
        return initial_model(config.replace(progress=False), source(config)).to(device)


class _Batches:
    """The batches (x, y) of the first steps of a training. Each iteration starts again."""

    def __init__(self, config: TrainConfig, steps: int):
        self.steps = steps
        whole = config.replace(micro_batch=None)
        self.inputs = Inputs(whole, source(config), World(), pick_device(config.device))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (part.made() for parts in self.inputs.steps(self.steps) for part in parts)


# ---- threshold, search, confirmation


WIDE = {"low": 0.002, "high": 0.64, "log": True}  # thresholds to search if none can be suggested


def suggested(config: TrainConfig, lr: float, steps: int = 60) -> ClipSuggestion:
    """Suggest a threshold from a short run of a copy, on the batches that the training will see.

    Args:
        config: The training.
        lr: Peak learning rate. If it leaves the network without gradients, a quarter and a sixteenth of it are tried.
        steps: Length of the run.

    Raises:
        WorkbenchError: If no rate leaves gradients.
    """
    seen, quiet = _Batches(config, steps), {"progress": not channel.has_listener(), "seed": config.seed}
    for rate in (lr, lr / 4, lr / 16):
        model = _built(config)
        groups = param_groups(model, config.weight_decay, example=example_input(config, source(config)))
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=config.momentum, nesterov=config.momentum > 0)
        try:
            return suggest_clip(model, seen, optimizer, steps=steps, eps=config.clip_eps, **quiet)
        except WorkbenchError:
            if rate == lr / 16:
                raise


def thresholds(config: TrainConfig, lr: float) -> tuple[ClipSuggestion | str, dict]:
    """Return the suggestion for a threshold, and the range to search.

    Without a suggestion, because every rate diverges, it is the reason. The range is then the one of clipping_search.

    Args:
        config: The training.
        lr: Peak learning rate.
    """
    try:
        suggestion = suggested(config, lr)
    except WorkbenchError as error:
        return f"No threshold is suggested: {error}", dict(WIDE)
    return suggestion, {"low": suggestion.low, "high": suggestion.high, "log": True}


def searched(
    arms: Mapping[str, TrainConfig],
    session: Session,
    *,
    lr: float | dict,
    clip: float | dict,
    trials: int,
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[str, TrainConfig]]:
    """Search both sides with equally many trials.

    Without BatchNorm the search is over peak rate and threshold, with it over the rate.

    Args:
        arms: Configuration by arm.
        session: Where the trials run and are kept.
        lr: Peak learning rate: a number, or a range {low, high, log}.
        clip: AGC threshold, likewise.
        trials: Number of trials per arm.
        seed: Seed of the sampler.

    Returns:
        All trials, one row each, and by arm the configuration of the best trial, if there is one.
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
    """Return the middle of a range, on its scale. A number stays as it is."""
    if isinstance(value, int | float):
        return float(value)
    r = Range.of(value)
    return float(np.sqrt(r.low * r.high)) if r.log else (r.low + r.high) / 2


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")


def confirmed(best: Mapping[str, TrainConfig], seeds: list[int], session: Session, weights: Path) -> pd.DataFrame:
    """Train the best of each side with fresh seeds, and read the test split.

    Args:
        best: Configuration by arm.
        seeds: Fresh seeds.
        session: Where the trainings run and are kept.
        weights: File for the weights of the first training without BatchNorm.

    Returns:
        The rows of `run_all`. `test_acc` of a diverged training is that of guessing.
    """
    fresh = [Arm(arm, config.replace(seed=s, evaluate_test=True)) for arm, config in best.items() for s in seeds]
    if NF in best and not is_planning():
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.unlink(missing_ok=True)  # left by an earlier run in the same folder
        first = next(arm for arm in fresh if arm.label == NF)
        run_training(first.config, session, role="confirm", arm=NF, save=str(weights))
    table = run_all(fresh, session, role="confirm")
    if table.empty:
        return table
    if "test_acc" not in table:
        table["test_acc"] = np.nan
    return table.assign(test_acc=table.test_acc.fillna(table.val_acc))  # diverged trainings guess, on both splits


def noise_scale(config: TrainConfig, weights: Path, batches: int = 32) -> NoiseScale | None:
    """Estimate the batch size above which larger batches gain little (McCandlish et al. 2018).

    Args:
        config: The training.
        weights: File with the weights at its end.
        batches: Number of batches of the estimate.

    Returns:
        The estimate. None: the file does not exist.
    """
    if not weights.is_file():
        return None
    model = load_checkpoint(weights, _built(config.replace(weights=None)))
    size = min(config.batch_size, len(source(config).train) // 2)
    return gradient_noise_scale(model, nn.functional.cross_entropy, _Batches(config.replace(batch_size=size), batches))
