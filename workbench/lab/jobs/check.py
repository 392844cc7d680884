"""Pre-flight checks, each a run of the store: signals in a network before its first step."""

import contextlib
import dataclasses

import torch
from torch import Tensor, nn

from workbench.data import load_dataset
from workbench.data.augment import normalize
from workbench.errors import WorkbenchError
from workbench.lab.store.client import Store
from workbench.lab.store.closing import closing
from workbench.lab.studies.recipes import parse_value
from workbench.networks import NORMFREE, SIZES, build_network, is_library, is_user_network, network_info
from workbench.probes.preflight import Preflight, preflight
from workbench.probes.shared import first_channels
from workbench.training.setup import pick_device

LARGEST = 128  # pixels per side of noise images by default: larger ones show the same
FOREIGN = 64  # pixels per side for a network outside the library


def check_model(
    name: str,
    *,
    arguments: dict | None = None,
    data: str | None = None,
    image_size: int | None = None,
    in_channels: int | None = None,
    batch_size: int = 16,
    precision: str = "float32",
    blocks: list[str] | None = None,
    seed: int = 0,
    device: str = "auto",
) -> tuple[str, Preflight]:
    """Build a network, judge its signals, and keep the result as a run.

    All arguments are checked before.

    Args:
        name: The network, as `build_network` takes it.
        arguments: Arguments that the network is built with.
        data: A data set's name or a folder of images, whose first validation images go through the network. None:
            N(0, 1) images.
        image_size: Pixels per side. None: the network's training size, at most `LARGEST`, or `FOREIGN`.
        in_channels: Channels of the images. None: those of `data`, else of the network's first convolution.
        batch_size: Number of images.
        precision: As `preflight` takes it.
        blocks: Module names of the residual blocks. None: `preflight` finds them.
        seed: Seed of the weights and of the noise.
        device: "auto", "cpu", "cuda", ...

    Returns:
        The run id and the judgement.

    Raises:
        WorkbenchError: If an argument is out of range or does not fit the data, or as `build_network`, `load_dataset`
            and `preflight` raise.
    """
    lower_bounds = {"batch_size": (batch_size, 1), "in_channels": (in_channels, 1), "image_size": (image_size, 8)}
    for parameter, (value, least) in lower_bounds.items():
        if value is not None and value < least:
            raise WorkbenchError(f"`{parameter}` must be at least {least}, got {value}.")
    torch_device = pick_device(device)
    images = None if data is None else _first_images(data, image_size, batch_size)
    if in_channels is not None and images is not None and images.shape[1] != in_channels:
        raise WorkbenchError(
            f"`in_channels` must be {images.shape[1]}, the channels of {data}, got {in_channels}. Leave it out."
        )
    channels = in_channels or (None if images is None else images.shape[1])
    arguments = dict(arguments or {})
    size = image_size or (min(network_info(name).train_size, LARGEST) if is_library(name) else FOREIGN)
    if name.startswith(NORMFREE):
        arguments.setdefault("image_size", size)
    if channels is not None and not is_user_network(name):
        arguments.setdefault("in_channels", channels)
    torch.manual_seed(seed)
    model = _built(name, channels, arguments).to(torch_device)
    if images is None:
        channels = channels or first_channels(model) or 3
        images = torch.randn(batch_size, channels, size, size, generator=torch.Generator().manual_seed(seed))
    judgement = preflight(model, images.to(torch_device), precision=precision, blocks=blocks)
    judgement = dataclasses.replace(judgement, name=name)

    from workbench.lab.plots import check_figure

    store = Store()
    parameters = {"model": name, "data": data or "N(0, 1)", "image_size": images.shape[-1], "batch_size": len(images)}
    parameters |= {"precision": precision, "seed": seed, **{f"arg_{k}": v for k, v in arguments.items()}}
    run_id = store.open_run("checks", name, parameters, {"device": torch_device.type}, source="workbench check")
    with closing(store, run_id):
        store.log_metrics(run_id, _numbers(judgement))
        store.log_table(run_id, judgement.table, "blocks")
        store.log_figure(run_id, check_figure(judgement.table), "blocks")
        store.describe(run_id, str(judgement))
        store.set_tags(run_id, outcome="sound" if judgement.ok else judgement.faults[0].verdict)
        store.close(run_id, "FINISHED")
    return run_id, judgement


def _built(name: str, channels: int | None, arguments: dict) -> nn.Module:
    """Build the network.

    A user's function receives all given arguments unchanged, sizes included, and must accept them.
    """
    if not is_user_network(name):
        return build_network(name, **arguments)
    sizes = {size: value for size, value in arguments.items() if size in SIZES}
    others = {name: value for name, value in arguments.items() if name not in SIZES}
    return build_network(name, in_channels=channels, arguments=sizes, **others)


def _first_images(data: str, image_size: int | None, n: int) -> Tensor:
    dataset = load_dataset(data, image_size)
    return normalize(dataset.val.images[:n], dataset.mean, dataset.std)


def _numbers(judgement: Preflight) -> dict[str, float]:
    table = judgement.table
    numbers = {"sound": int(judgement.ok), "faults": len(judgement.faults), "blocks": len(table) - 1}
    numbers |= {"last_var": table["var"].iloc[-1], "largest_dead": table.dead.max()}
    if "var_deviation" in table:
        numbers["largest_deviation"] = table.var_deviation[1:].abs().max()
    return numbers


def parse_arguments(texts: dict[str, str]) -> dict:
    """Read the arguments of a network from texts by name.

    Numbers such as 1e-3 become floats, although YAML reads them as text.
    """
    values = {name: parse_value(name, text) for name, text in texts.items()}
    for name, value in values.items():
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                values[name] = float(value)
    return values
