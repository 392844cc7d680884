"""Pre-flight checks in the store: what a network does to signals before its first step is a run like every other."""

import contextlib
import dataclasses

import torch
from torch import Tensor, nn

from workbench.data import load_dataset
from workbench.data.augment import normalize
from workbench.errors import WorkbenchError
from workbench.lab.store.client import Store
from workbench.lab.studies.recipes import parse_value
from workbench.networks import NORMFREE, SIZES, build_network, is_library, is_user_network, network_info
from workbench.probes.preflight import Preflight, preflight
from workbench.probes.shared import first_channels
from workbench.training.setup import pick_device

LARGEST = 128  # pixels a side of noise, where nothing else is asked for: larger images show the same
FOREIGN = 64


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
    """Builds a network, judges it and keeps the answer: (run id, what was found). Everything is checked before.

    Args: `name` as of build_network, `arguments` what it is built with; `data` a data set's name or a folder of images,
    whose first validation images go through the network, else N(0, 1) images of `image_size` pixels a side.
    Raises: WorkbenchError as build_network, load_dataset and preflight.
    """
    least_of = {"batch_size": (batch_size, 1), "in_channels": (in_channels, 1), "image_size": (image_size, 8)}
    for what, (value, least) in least_of.items():
        if value is not None and value < least:
            raise WorkbenchError(f"`{what}` (={value}) must be at least {least}.")
    where = pick_device(device)
    images = None if data is None else _first_images(data, image_size, batch_size)
    if in_channels is not None and images is not None and images.shape[1] != in_channels:
        raise WorkbenchError(
            f"`in_channels` (={in_channels}) must be that of {data} (={images.shape[1]}): leave it out."
        )
    channels = in_channels or (None if images is None else images.shape[1])
    arguments = dict(arguments or {})
    size = image_size or (min(network_info(name).train_size, LARGEST) if is_library(name) else FOREIGN)
    if name.startswith(NORMFREE):
        arguments.setdefault("image_size", size)
    if channels is not None and not is_user_network(name):
        arguments.setdefault("in_channels", channels)
    torch.manual_seed(seed)
    model = _built(name, channels, arguments).to(where)
    if images is None:
        channels = channels or first_channels(model) or 3
        images = torch.randn(batch_size, channels, size, size, generator=torch.Generator().manual_seed(seed))
    judgement = preflight(model, images.to(where), precision=precision, blocks=blocks)
    judgement = dataclasses.replace(judgement, name=name)

    from workbench.lab.plots import check_figure

    store = Store()
    parameters = {"model": name, "data": data or "N(0, 1)", "image_size": images.shape[-1], "batch_size": len(images)}
    parameters |= {"precision": precision, "seed": seed, **{f"arg_{k}": v for k, v in arguments.items()}}
    run_id = store.open_run("checks", name, parameters, {"device": where.type}, source="workbench check")
    store.log_metrics(run_id, _numbers(judgement))
    store.log_table(run_id, judgement.table, "blocks")
    store.log_figure(run_id, check_figure(judgement.table), "blocks")
    store.describe(run_id, str(judgement))
    store.set_tags(run_id, outcome="sound" if judgement.ok else judgement.faults[0].verdict)
    store.close(run_id, "FINISHED")
    return run_id, judgement


def _built(name: str, channels: int | None, arguments: dict) -> nn.Module:
    """The network. What the user asks of a function of theirs is passed on as it is, also sizes: it must take them."""
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
    """Arguments of a network from NAME=VALUE texts, numbers such as 1e-3 among them, which YAML takes for text."""
    values = {name: parse_value(name, text) for name, text in texts.items()}
    for name, value in values.items():
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                values[name] = float(value)
    return values
