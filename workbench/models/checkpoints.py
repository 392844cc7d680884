"""Weights in and out: the authors' released files, timm's, and our own.

`load_checkpoint("nfnet_f0")` fetches and loads; `load_checkpoint("weights.safetensors")` reads a file and finds out
which network it belongs to. Nothing in a file is executed. Our own files are safetensors that name their network, its
constants included: alpha, beta and gamma are in no parameter, so wrong ones would load without a sound.
"""

import copy
import json
import os
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from workbench.errors import WorkbenchError, unknown
from workbench.models import zoo
from workbench.models.downloads import check_digest, fetch
from workbench.models.haiku import from_haiku, haiku_state, to_haiku
from workbench.models.layers import ScaledStdConv2d
from workbench.models.pickles import Tree, read_pickle
from workbench.models.strict import complaints, load_strictly
from workbench.models.timm_layout import IN_TIMM, from_timm, is_timm, to_timm

__all__ = ["RELEASED", "convert", "from_haiku", "load_checkpoint", "save_checkpoint", "to_haiku", "to_timm"]


@dataclass(frozen=True)
class Released:
    """Where public weights are, and how to know them."""

    url: str
    digest: str
    size: int | None = None

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


_BUCKET = "https://storage.googleapis.com/dm-nfnets"
_TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download"
RELEASED = {
    "nfnet_f0": Released(f"{_BUCKET}/F0_haiku.npz", "md5:0a41039da1cb43adf47f1b7d86ddfe0f", 285_976_842),
    "nfnet_f1": Released(f"{_BUCKET}/F1_haiku.npz", "md5:c9126bbfaf855f9ddb7ff3b902558781"),
    "nfnet_f2": Released(f"{_BUCKET}/F2_haiku.npz", "md5:7a018d8d1498020e2f5a8719a1e7f53f"),
    "nfnet_f3": Released(f"{_BUCKET}/F3_haiku.npz", "md5:d8e1e78d26db659c486150dbaccbe78a"),
    "nfnet_f4": Released(f"{_BUCKET}/F4_haiku.npz", "md5:f5974a7e3388aa81b91a9f1403e759a4"),
    "nfnet_f5": Released(f"{_BUCKET}/F5_haiku.npz", "md5:8639e925de951030651ac775b9f915c3"),
    "nfnet_f6": Released(f"{_BUCKET}/F6_haiku.npz", "md5:b16cca40ac1ecec2bd5e3273866da0c1"),
    "timm_nf_resnet50": Released(f"{_TIMM}/v0.1-weights/nf_resnet50_ra2-9f236009.pth", "sha256:9f236009"),
    "timm_nf_regnet_b1": Released(f"{_TIMM}/v0.1-weights/nf_regnet_b1_256_ra2-ad85cfef.pth", "sha256:ad85cfef"),
    "timm_nfnet_l0": Released(f"{_TIMM}/v0.1-weights/nfnet_l0_ra2-45c6688d.pth", "sha256:45c6688d"),
    "timm_eca_nfnet_l0": Released(f"{_TIMM}/v0.1-weights/ecanfnet_l0_ra2-e3e9ac50.pth", "sha256:e3e9ac50"),
    "timm_eca_nfnet_l1": Released(f"{_TIMM}/v0.1-weights/ecanfnet_l1_ra2-7dce93cd.pth", "sha256:7dce93cd"),
    "timm_eca_nfnet_l2": Released(f"{_TIMM}/v0.1-weights/ecanfnet_l2_ra3-da781a61.pth", "sha256:da781a61"),
}
# Arguments that change how a network trains, but not what it computes with given weights.
_TRAINING_ONLY = {"dropout", "stochastic_depth", "skip_gain", "he_init"}
_FORMAT = "normfree-workbench/1"


@dataclass(frozen=True)
class Weights:
    """A file, read: its layout (haiku, timm or workbench), its arrays, and the network it names, where it names one."""

    file: Path
    layout: str
    content: Tree | dict[str, Tensor]
    recipe: dict | None = None

    def state_for(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The arrays under the model's names, and the file's names for them."""
        if self.layout == "haiku":
            return haiku_state(self.content, model)
        return self.content, {}

    def shape(self) -> tuple[int, int, int]:
        """(classes, input channels, blocks), as the arrays tell."""
        if self.layout == "haiku":
            net = next(iter(self.content), "").partition("/")[0]
            head = self.content.get(f"{net}/~/linear", {}).get("b")
            first = self.content.get(f"{net}/~/stem_conv0", self.content.get(f"{net}/~/initial_conv", {})).get("w")
            blocks = sum("skip_gain" in arrays for arrays in self.content.values() if isinstance(arrays, dict))
            return (0 if head is None else len(head)), (3 if first is None else first.shape[2]), blocks
        head, first = (
            self.content.get("linear.bias"),
            self.content.get("stem.0.weight", self.content.get("stem.weight")),
        )
        blocks = {name.split(".")[1] for name in self.content if name.startswith("blocks.")}
        return (0 if head is None else len(head)), (3 if first is None else first.shape[1]), len(blocks)


def load_checkpoint(
    source: str | Path,
    model: nn.Module | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    verify: bool = True,
    progress: bool = True,
    **overrides,
) -> nn.Module:
    """A network with weights, from a file or from a name of `RELEASED`.

    Args: `source` a path (.npz as released, .safetensors, .pth), or a model's name, whose released file is then
    fetched once. `model`: load into this one, strictly; without it the right network is built. `num_classes`: another
    number than the file's gets a freshly drawn classifier (0: none). `in_channels`: another number adapts the first
    convolution (see `adapt_in_channels`). `verify=False` skips the hash of a file that has a released file's name.
    `overrides` go to `create_model` (dropout=0.25, ...).
    Raises: WorkbenchError for a file that is not there, is damaged or hostile, or belongs to another network, naming
    the right one. Nothing in the file is executed.
    """
    if model is not None and (num_classes is not None or in_channels is not None or overrides):
        raise WorkbenchError("give a model, or num_classes, in_channels and overrides to build one: not both.")
    weights = read_weights(find(source, verify=verify, progress=progress))
    if model is not None:
        load_into(model, weights)
        return model
    recipe = {**identify(weights), **overrides}
    model = zoo.create_model(**recipe)
    load_strictly(model, *weights.state_for(model))
    if num_classes is not None and num_classes != model.num_classes:
        model.reset_classifier(num_classes)
    if in_channels is not None:
        adapt_in_channels(model, in_channels)
    return model


def save_checkpoint(model: nn.Module, file: str | Path) -> Path:
    """Writes the model as safetensors that name it, so that `load_checkpoint(file)` needs nothing else."""
    file = Path(file)
    recipe = recipe_of(model)
    metadata = {"format": _FORMAT, **({"recipe": json.dumps(recipe)} if recipe else {})}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return _write(file, lambda part: save_file(state, part, metadata))


def convert(source: str | Path, target: str | Path, *, layout: str = "workbench", verify: bool = True) -> nn.Module:
    """Reads any file of weights and writes it in another layout; returns the network that it belongs to.

    Args: `layout` of a .safetensors or .pth target: "workbench" or "timm"; a .npz target has the released layout.
    """
    target = Path(target)
    if target.suffix not in (".safetensors", ".pth", ".npz"):
        raise WorkbenchError(f"{target} must end in .safetensors, .pth or .npz (the released layout).")
    if layout not in ("workbench", "timm"):
        raise unknown("layout", layout, ["workbench", "timm"])
    if target.suffix == ".npz" and layout == "timm":
        raise WorkbenchError("a .npz file has the released layout: for timm's, end the name in .safetensors or .pth.")
    model = load_checkpoint(source, verify=verify)
    if target.suffix == ".npz":
        _write(target, lambda part: part.write_bytes(pickle.dumps(to_haiku(model), protocol=4)))
    elif layout == "workbench" and target.suffix == ".safetensors":
        save_checkpoint(model, target)
    else:
        state = to_timm(model) if layout == "timm" else model.state_dict()
        write = torch.save if target.suffix == ".pth" else save_file
        _write(target, lambda part: write(state, part))
    return model


def adapt_in_channels(model: nn.Module, in_channels: int) -> None:
    """Gives the first convolution another number of input channels, keeping what it computes, in place.

    With fewer channels C than before, feeding x is feeding the old network x with its channels repeated (channel i of
    the old input is channel i mod C of the new): a gray image acts as it did in three equal channels. With more, the
    further ones start with weight zero. Exact under weight standardisation: the gain takes the change of norm.
    """
    if in_channels < 1:
        raise WorkbenchError(f"`in_channels` (={in_channels}) must be at least 1.")
    several = isinstance(model.stem, nn.ModuleList)
    old = model.stem[0] if several else model.stem
    if in_channels == old.in_channels:
        return
    new = type(old)(in_channels, old.out_channels, old.kernel_size, old.stride, old.groups, old.scale)
    new = new.to(device=old.weight.device, dtype=old.weight.dtype)
    new.bias = copy.deepcopy(old.bias)
    standardized = isinstance(old, ScaledStdConv2d)
    with torch.no_grad():
        before = old.standardized_weight() if standardized else old.weight
        wanted = torch.zeros_like(new.weight)
        for i in range(old.in_channels):
            wanted[:, i % in_channels] += before[:, i]
        if standardized:
            norm, was = _norms(wanted), _norms(old.weight - old.weight.mean((1, 2, 3), keepdim=True)).clamp_min(0.02)
            some = norm > 0  # a filter that was switched off keeps random weights, and gain 0
            new.weight[some] = (wanted * (was / norm.clamp_min(1e-30))[:, None, None, None])[some]
            new.gain.copy_(norm / _norms(new.standardized_weight()))
        else:
            new.weight.copy_(wanted)
    if several:
        model.stem[0] = new
    else:
        model.stem = new
    if hasattr(model, "recipe"):
        model.recipe["in_channels"] = in_channels


def _norms(weight: Tensor) -> Tensor:
    return weight.flatten(1).norm(dim=1)


# ---- from a name to a file, from a file to arrays


def find(source: str | Path, *, verify: bool = True, progress: bool = True) -> Path:
    """The file: a path that exists, or a released one by its model's name or its file's name, fetched once."""
    path = Path(source).expanduser()
    by_file = {released.file_name: released for released in RELEASED.values()}
    if path.is_file():
        if verify and path.name in by_file:
            check_digest(path, by_file[path.name].digest)
        return path
    released = RELEASED.get(str(source)) or by_file.get(str(source))
    if released is not None:
        return fetch(released.url, released.digest, size=released.size, progress=progress)
    if path.suffix or "/" in str(source):
        raise WorkbenchError(f"there is no file of weights at {path}.")
    if str(source) in zoo.MODELS:
        raise WorkbenchError(f"no weights of '{source}' were released; there are: {', '.join(RELEASED)}.")
    raise unknown("released model", str(source), RELEASED)


def read_weights(file: Path) -> Weights:
    """The arrays of a file under our names (under the released ones for .npz); nothing in it is executed."""
    if file.suffix == ".npz":
        return Weights(file, "haiku", read_pickle(file))
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
                state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WorkbenchError(f"cannot read {file} as safetensors ({error}): fetch it again.") from error
        recipe = json.loads(metadata["recipe"]) if metadata.get("format") == _FORMAT and "recipe" in metadata else None
    elif file.suffix in (".pth", ".pt", ".bin"):
        state, recipe = _read_torch(file), None
    else:
        raise WorkbenchError(f"{file} must end in .npz (as released), .safetensors, .pth, .pt or .bin.")
    if is_timm(state):
        return Weights(file, "timm", from_timm(state))
    return Weights(file, "workbench", state, recipe)


def _read_torch(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        cause = str(error).splitlines()[0]
        raise WorkbenchError(f"cannot read {file} as weights ({cause}): nothing in it was executed.") from error
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WorkbenchError(f"{file} holds no state dict: a dict of names and tensors is needed.")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


# ---- from arrays to a network


def load_into(model: nn.Module, weights: Weights) -> None:
    """Loads strictly; weights of another network are refused by its name."""
    try:
        state, labels = weights.state_for(model)
        found = complaints(model, state, labels)
    except WorkbenchError as error:
        found = [str(error)]
    asked = recipe_of(model)
    if not found and weights.recipe and asked:
        found = _differences(asked, weights.recipe)
    if not found:
        return load_strictly(model, state, labels)
    name = asked["name"] if asked else type(model).__name__
    try:
        right = identify(weights)
    except WorkbenchError:
        raise WorkbenchError(f"{weights.file} does not fit {name}: {'; '.join(found)}.") from None
    arguments = ", ".join(f"{key}={value!r}" for key, value in right.items() if key != "name")
    raise WorkbenchError(
        f"{weights.file} belongs to create_model({right['name']!r}, {arguments}), and does not fit {name}: {found[0]}."
    )


def identify(weights: Weights) -> dict:
    """The recipe, {"name": ..., "num_classes": ..., "in_channels": ...}, of the network that these weights fit.

    Raises: WorkbenchError where there is none, saying how far the nearest is off.
    """
    if weights.recipe:
        return weights.recipe
    num_classes, in_channels, blocks = weights.shape()
    nearest: tuple[int, str, list[str]] | None = None
    for name in _candidates(weights, blocks):
        with torch.device("meta"):
            model = zoo.create_model(name, num_classes, in_channels=in_channels)
        try:
            found = complaints(model, *weights.state_for(model))
        except WorkbenchError:  # another family
            continue
        if not found:
            return {"name": name, "num_classes": num_classes, "in_channels": in_channels}
        if nearest is None or len(found) < nearest[0]:
            nearest = (len(found), name, found)
    hint = f" The nearest is {nearest[1]}: {'; '.join(nearest[2])}." if nearest else ""
    raise WorkbenchError(f"{weights.file} fits no network of this library.{hint}")


def _candidates(weights: Weights, blocks: int) -> Iterable[str]:
    """Names of networks with so many blocks; timm's layout is that of our NFNets and of timm's own."""
    for name, row in zoo.MODELS.items():
        if weights.layout == "timm" and row.build.func not in IN_TIMM:
            continue
        if sum(row.build.keywords["depth"]) == blocks:
            yield name


def recipe_of(model: nn.Module) -> dict | None:
    """What `create_model` needs to build this model again; None where it was built otherwise, or cannot be said."""
    recipe = getattr(model, "recipe", None)
    if recipe is None:
        return None
    recipe = {**recipe, "num_classes": model.num_classes}
    try:
        return json.loads(json.dumps(recipe))
    except TypeError:  # a callable activation, say
        return None


def _differences(asked: dict, found: dict) -> list[str]:
    """Constants in which two networks of equal shapes differ."""
    keys = (set(asked) | set(found)) - _TRAINING_ONLY - {"num_classes", "in_channels"}
    return [
        f"`{key}` is {asked.get(key, 'the default')} here and {found.get(key, 'the default')} in the file"
        for key in sorted(keys)
        if asked.get(key) != found.get(key)
    ]


def _write(file: Path, write) -> Path:
    """Writes beside the target and then renames: there is never half a file under its name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        write(part)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return file
