"""Signal propagation of several networks over several initialisations and inputs, as one tidy table with its theory."""

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
from workbench.probes.theory import STATISTICS, beside

Arms = Mapping[str, tuple[str, dict]]  # label: a network's name, what it is built with


def arms_of(model: str) -> dict[str, tuple[str, dict]]:
    """What a network is held against, as far as it has them: itself with skip gain 1 ("NF"; one that is not
    normalizer-free by its own name), without scaled weight standardisation, and its BatchNorm twin.

    Raises: WorkbenchError for an unknown name.
    """
    if ":" not in model:
        entry(model)
    if ":" in model or not _takes(model, "skip_gain"):
        return {"BN" if model.startswith("resnet") else model: (model, {})}
    arms = {"NF": (model, {"skip_gain": 1.0})}  # or every block is its shortcut, and there is nothing to see
    if _takes(model, "standardize"):
        arms["NF without scaled WS"] = (model, {"skip_gain": 1.0, "standardize": False})
    twin = model.removeprefix("nf_")
    if twin != model and twin in MODELS:
        arms["BN"] = (twin, {"he_init": True})
    return arms


def variations(model: str, factors: Mapping[str, list]) -> dict[str, Arms]:
    """Make one arm per value of each factor, with all else as in `arms_of`.

    Returns:
        By factor its arms, named by their values. Factors that the network does not have are left out.
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
    """What goes into the networks, (N, 3, image_size, image_size): "noise" from N(0, 1) and, of a data set, "images":
    the first of its validation split, normalised, resized, gray ones in three equal channels."""
    for name, value, least in (("image_size", image_size, 8), ("batch_size", batch_size, 2)):
        if value < least:
            raise WorkbenchError(f"`{name}` (={value}) must be at least {least}.")
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
    """Every arm on every input, built again for each seed, in training mode without what is dropped at random.

    Returns: one row an arm, input, seed and block: the columns of signal_propagation with grad_var and dead, and the
    expected ones with their deviations (NaN where there is no theory for the network).
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
        tables.append(beside(measured, _theory(net, x, name)).assign(arm=arm, input=name, seed=seed))
    return pd.concat(tables, ignore_index=True)


def _theory(net: torch.nn.Module, x: Tensor, name: str) -> pd.DataFrame:
    """What is expected; of networks without a theory, a table of nothing."""
    try:
        return expected_signal(net, x.shape[-1]) if name == "noise" else expected_signal(net, images=x)
    except WorkbenchError:
        return pd.DataFrame(columns=[*STATISTICS], dtype=float)
