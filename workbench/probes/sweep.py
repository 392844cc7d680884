"""Signal propagation of several networks, seeds and inputs, in one tidy table."""

import inspect
from collections.abc import Callable, Iterable, Mapping

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.data import load_dataset
from workbench.data.augment import normalize
from workbench.errors import WorkbenchError
from workbench.models.zoo import MODELS, entry
from workbench.networks import build_network
from workbench.probes import expected_signal, signal_propagation
from workbench.probes.signal import in_training
from workbench.probes.theory import STATISTICS, with_expected

Arms = Mapping[str, tuple[str, dict]]  # by label a network's name, and the arguments that build it


def arms_of(model: str) -> dict[str, tuple[str, dict]]:
    """Make the arms that a network is compared with.

    Args:
        model: Name of a network.

    Returns:
        By label a network's name, and the arguments that build it. A normalizer-free network gets the arms "NF" (with
        skip gain 1), "NF without scaled WS" (without scaled weight standardisation) and "BN" (its BatchNorm twin), as
        far as they exist. Any other network is a single arm.

    Raises:
        WorkbenchError: If the library has no such network.
    """
    if ":" not in model:
        entry(model)
    if ":" in model or not _takes(model, "skip_gain"):
        return {"BN" if model.startswith("resnet") else model: (model, {})}
    arms = {"NF": (model, {"skip_gain": 1.0})}  # with skip gain 0, every block equals its shortcut
    if _takes(model, "standardize"):
        arms["NF without scaled WS"] = (model, {"skip_gain": 1.0, "standardize": False})
    twin = model.removeprefix("nf_")
    if twin != model and twin in MODELS:
        arms["BN"] = (twin, {"he_init": True})
    return arms


def variations(model: str, factors: Mapping[str, list]) -> dict[str, Arms]:
    """Make one arm per value of each factor, with all other arguments as in `arms_of`.

    Args:
        model: Name of a network.
        factors: By factor, which is an argument of the network, its values.

    Returns:
        By factor its arms, labelled by their values. Factors that the network does not have are left out.
    """
    if ":" in model:
        return {}
    base = {"skip_gain": 1.0} if _takes(model, "skip_gain") else {}
    return {
        factor: {str(value): (model, {**base, factor: value}) for value in values}
        for factor, values in factors.items()
        if _takes(model, factor)
    }


def _takes(model: str, argument: str) -> bool:
    return argument in inspect.signature(entry(model).build.func).parameters


def inputs_of(image_size: int, batch_size: int, data: str | None) -> dict[str, Tensor]:
    """Make the inputs of the networks.

    Args:
        image_size: Height and width, pixels, at least 8.
        batch_size: Number of images, at least 2.
        data: Name of a data set. None: only noise.

    Returns:
        Tensors (batch_size, 3, image_size, image_size). "noise" is from N(0, 1). "images" are the first of the data
        set's validation split, normalised and resized. Gray images are repeated in three channels.

    Raises:
        WorkbenchError: If a size is too small.
    """
    for name, value, least in (("image_size", image_size, 8), ("batch_size", batch_size, 2)):
        if value < least:
            raise WorkbenchError(f"`{name}` must be at least {least}, got {value}.")
    generator = torch.Generator().manual_seed(0)
    inputs = {"noise": torch.randn(batch_size, 3, image_size, image_size, generator=generator)}
    if data is not None:
        dataset = load_dataset(data)
        images = normalize(dataset.val.images[:batch_size], dataset.mean, dataset.std)
        resized = F.interpolate(images, (image_size, image_size), mode="bilinear", antialias=True, align_corners=False)
        inputs["images"] = resized.expand(-1, 3, -1, -1) if resized.shape[1] == 1 else resized
    return inputs


def measure_signals(
    arms: Arms, inputs: Mapping[str, Tensor], seeds: Iterable[int], progress: Callable | None = None
) -> pd.DataFrame:
    """Measure every arm on every input, with a new network for each seed.

    The networks are in training mode, but without dropout and stochastic depth.

    Args:
        arms: By label a network's name, and the arguments that build it.
        inputs: By name the input, as of `inputs_of`.
        seeds: Seeds of the weights.
        progress: Wraps a list, with a label, to show progress.

    Returns:
        One row per arm, input, seed and block. Columns: arm, input, seed, those of `signal_propagation` with grad_var
        and dead, the expected values and the deviations. The last two are NaN if the network has no theory.
    """
    cells = [(arm, name, seed) for arm in arms for name in inputs for seed in seeds]
    tables = []
    for arm, name, seed in progress(cells, "networks") if progress else cells:
        model, arguments = arms[arm]
        torch.manual_seed(seed)
        net = build_network(model, 10, **arguments)
        x = inputs[name]
        with in_training(net):
            measured = signal_propagation(net, x, backward=True, dead=True)
        tables.append(with_expected(measured, _theory(net, x, name)).assign(arm=arm, input=name, seed=seed))
    return pd.concat(tables, ignore_index=True)


def _theory(net: torch.nn.Module, x: Tensor, name: str) -> pd.DataFrame:
    """Return the expected signal; an empty table for a network without a theory."""
    try:
        return expected_signal(net, x.shape[-1]) if name == "noise" else expected_signal(net, images=x)
    except WorkbenchError:
        return pd.DataFrame(columns=[*STATISTICS], dtype=float)
