"""Weights in and out: the authors' released files, timm's, and our own.

`load_checkpoint("nfnet_f0")` fetches and loads; `load_checkpoint("weights.safetensors")` reads a file and finds out
which network it belongs to. Nothing in a file is executed. Our own files are safetensors that name their network, its
constants included: alpha, beta and gamma are in no parameter, so wrong ones would load without a sound.
"""

import inspect
import json
import pickle
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from workbench.errors import WorkbenchError, unknown
from workbench.files import target_path, write_whole
from workbench.models import zoo
from workbench.models.own.networks import is_own
from workbench.models.weights.downloads import cache_folder, check_digest, fetch
from workbench.models.weights.haiku import from_haiku, haiku_state, to_haiku
from workbench.models.weights.input_channels import adapt_in_channels
from workbench.models.weights.pickles import Tree, read_pickle
from workbench.models.weights.strict import complaints, load_strictly
from workbench.models.weights.timm_layout import IN_TIMM, from_timm, is_timm, to_timm

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
_WRAPPERS = r"^(module\.|_orig_mod\.)+"  # what DistributedDataParallel and torch.compile put before names


@dataclass(frozen=True)
class Weights:
    """A file, read: its layout (haiku, timm or workbench), its arrays, and the network it names, where it names one."""

    file: Path
    layout: str
    content: Tree | dict[str, Tensor]
    recipe: dict | None = None
    named: bool = False  # whether the file is ours, and so would name its network if it could be named
    preprocess: dict | None = None  # how its images are made, where they are not ImageNet's

    def state_for(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The arrays under the model's names, and the file's names for them."""
        if self.layout == "haiku":
            return haiku_state(self.content, model)
        return self.content, {}

    def shape(self) -> tuple[int, int, int]:
        """(classes, input channels, blocks), as the arrays tell; 0, 3 and 0 where they do not."""
        if self.layout == "haiku":
            net = next(iter(self.content), "").partition("/")[0]
            modules = {name: arrays for name, arrays in self.content.items() if isinstance(arrays, dict)}
            head = modules.get(f"{net}/~/linear", {}).get("b")
            first = modules.get(f"{net}/~/stem_conv0", modules.get(f"{net}/~/initial_conv", {})).get("w")
            blocks, axis = sum("skip_gain" in arrays for arrays in modules.values()), 2
        else:
            head = self.content.get("linear.bias")
            first = self.content.get("stem.0.weight", self.content.get("stem.weight"))
            blocks, axis = len({name.split(".")[1] for name in self.content if name.startswith("blocks.")}), 1
        classes = len(head) if head is not None and head.ndim == 1 else 0
        return classes, first.shape[axis] if first is not None and first.ndim == 4 else 3, blocks


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
    if model is not None and not isinstance(model, nn.Module):
        raise WorkbenchError(f"`model` (={model!r}) must be a network, or None to have the right one built.")
    if model is not None and (num_classes is not None or in_channels is not None or overrides):
        raise WorkbenchError("give a model, or num_classes, in_channels and overrides to build one: not both.")
    weights = read_weights(find(source, verify=verify, progress=progress))
    if model is not None:
        load_into(model, weights)
        return model
    model = build(weights, **overrides)
    if num_classes is not None and num_classes != model.num_classes:
        model.reset_classifier(num_classes)
    if in_channels is not None:
        adapt_in_channels(model, in_channels)
    return model


def save_checkpoint(model: nn.Module, file: str | Path, preprocess: dict | None = None) -> Path:
    """Writes the model as safetensors that name it, so that `load_checkpoint(file)` needs nothing else.

    Args: `preprocess` says how its images are made, for `evaluate`: mean and std (a number a channel, in units of
    0..1), image_size, style (see workbench.data.preprocess). Without it they are ImageNet's.

    A model with a function for an activation cannot be named: its file loads into a model only,
    `load_checkpoint(file, model)`.
    Raises: WorkbenchError for a model that was not made by `create_model`, or was changed since (folded, wrapped): save
    its state_dict() instead, or export it.
    """
    file = target_path(file, (".safetensors",))
    recipe = recipe_of(model)
    if recipe is not None:
        with torch.device("meta"):
            found = complaints(zoo.create_model(**recipe), model.state_dict(), {})
    elif getattr(model, "recipe", None) is None:
        found = ["create_model did not make it"]
    else:
        found = []
    if found:
        raise WorkbenchError(
            f"this {type(model).__name__} cannot be named in a file ({found[0]}): save the network itself, not a "
            "folded or wrapped one (compiled._orig_mod, ddp.module), or its state_dict() with torch.save."
        )
    metadata = {"format": _FORMAT, "recipe": json.dumps(recipe), "preprocess": json.dumps(preprocess)}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return write_whole(file, lambda part: save_file(state, part, metadata))


def convert(source: str | Path, target: str | Path, *, layout: str = "workbench", verify: bool = True) -> nn.Module:
    """Reads any file of weights and writes it in another layout; returns the network that it belongs to.

    Args: `layout` of a .safetensors or .pth target: "workbench" or "timm"; a .npz target has the released layout. Only
    our .safetensors can say that a network has other constants than its name stands for.
    """
    target = target_path(target, (".safetensors", ".pth", ".npz"))
    if layout not in ("workbench", "timm"):
        raise unknown("layout", layout, ["workbench", "timm"])
    if target.suffix == ".npz" and layout == "timm":
        raise WorkbenchError("a .npz file has the released layout: for timm's, end the name in .safetensors or .pth.")
    weights = read_weights(find(source, verify=verify))
    model = build(weights)
    if target.suffix == ".safetensors" and layout == "workbench":
        save_checkpoint(model, target, weights.preprocess)
        return model
    special = _constants(model.recipe)
    if special:
        said = ", ".join(f"{key}={value!r}" for key, value in special.items())
        raise WorkbenchError(
            f"{source} is a {model.recipe['name']} with {said}, which no {target.suffix} file can say: it would load "
            "as another function. Convert it to .safetensors."
        )
    if target.suffix == ".npz":
        tree = to_haiku(model)
        write_whole(target, lambda part: part.write_bytes(pickle.dumps(tree, protocol=4)))
    else:
        state = to_timm(model) if layout == "timm" else model.state_dict()
        write = torch.save if target.suffix == ".pth" else save_file
        write_whole(target, lambda part: write(state, part))
    return model


# ---- from a name to a file, from a file to arrays


def find(source: str | Path, *, verify: bool = True, progress: bool = True) -> Path:
    """The file: a path that exists, or a released one by its model's name or its file's name, fetched once."""
    if not isinstance(source, str | Path):
        raise WorkbenchError(f"`source` (={source!r}) must be a path or the name of released weights.")
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


def is_cached(model: str) -> bool:
    """Whether the released weights of a model lie in the cache (`workbench models download` fetches them)."""
    return model in RELEASED and (cache_folder() / RELEASED[model].file_name).is_file()


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
        if metadata.get("format") == _FORMAT:
            return Weights(file, "workbench", state, *_read_metadata(metadata, file))
    elif file.suffix in (".pth", ".pt", ".bin"):
        state = _read_torch(file)
    else:
        raise WorkbenchError(f"{file} must end in .npz (as released), .safetensors, .pth, .pt or .bin.")
    state = {re.sub(_WRAPPERS, "", name): tensor for name, tensor in state.items()}
    wrong = [name for name, tensor in state.items() if tensor.is_meta or tensor.layout != torch.strided]
    if wrong:
        raise WorkbenchError(f"{file} holds no dense weights under {wrong[0]}: save them as ordinary tensors.")
    if is_timm(state):
        return Weights(file, "timm", from_timm(state))
    return Weights(file, "workbench", state)


def _read_metadata(metadata: dict[str, str], file: Path) -> tuple[dict | None, bool, dict | None]:
    """The recipe, that the file is ours, and how its images are made."""
    try:
        recipe, preprocess = json.loads(metadata["recipe"]), json.loads(metadata.get("preprocess", "null"))
        if recipe is not None and not is_own(recipe["name"]):  # a file must not have code of the user's imported
            with torch.device("meta"):
                zoo.create_model(**recipe)  # a name and arguments that this version knows
        return recipe, True, preprocess
    except (ValueError, TypeError, KeyError) as error:  # also a name that this version does not know
        raise WorkbenchError(
            f"{file} does not say rightly which network it is for ({error}): give load_checkpoint a model."
        ) from error


def _read_torch(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises to load it all the same
        raise WorkbenchError(
            f"{file} is damaged, or asks for more than tensors: refused, nothing in it was executed."
        ) from error
    except Exception as error:  # whatever a damaged file makes of torch.load
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise WorkbenchError(f"cannot read {file} as weights ({cause}): nothing in it was executed.") from error
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise WorkbenchError(f"{file} holds no state dict: a dict of names and tensors is needed.")
    return state


# ---- from arrays to a network


def build(weights: Weights, **overrides) -> nn.Module:
    """The network that these weights belong to, with them in it."""
    model = zoo.create_model(**{**identify(weights), **overrides})
    load_strictly(model, *weights.state_for(model))
    return model


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
        if is_own(weights.recipe["name"]):
            raise WorkbenchError(
                f"{weights.file} is of {weights.recipe['name']}, which is no network of this library: build that and "
                "give it, load_checkpoint(file, model)."
            )
        return weights.recipe
    if weights.named:
        raise WorkbenchError(
            f"{weights.file} holds a network with a function of its own for an activation, which a file cannot say: "
            "make that network and give it, load_checkpoint(file, model)."
        )
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


def _defaults(name: str) -> dict:
    """The arguments that a name stands for, as JSON has them."""
    made = zoo.entry(name).build
    defaults = {k: p.default for k, p in inspect.signature(made.func).parameters.items()} | made.keywords
    return json.loads(json.dumps(defaults, default=str))


def _constants(recipe: dict) -> dict:
    """What in a recipe changes the function that its name stands for; a default that was said is a default."""
    asked, defaults = set(recipe) - _TRAINING_ONLY - {"name", "num_classes", "in_channels"}, _defaults(recipe["name"])
    return {key: recipe[key] for key in sorted(asked) if recipe[key] != defaults.get(key)}


def _differences(asked: dict, found: dict) -> list[str]:
    """Constants in which two networks of equal shapes differ."""
    if asked["name"] != found["name"]:
        return [f"it is {asked['name']} here and {found['name']} in the file"]
    defaults = _defaults(asked["name"])
    ours, theirs = defaults | _constants(asked), defaults | _constants(found)
    keys = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    return [f"`{key}` is {ours.get(key)} here and {theirs.get(key)} in the file" for key in keys]
