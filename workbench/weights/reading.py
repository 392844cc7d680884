"""Reads a file of weights into arrays. Nothing in the file is executed."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from workbench.errors import WorkbenchError, shown
from workbench.weights.haiku import haiku_state
from workbench.weights.metadata import read_metadata
from workbench.weights.pickles import read_pickle
from workbench.weights.prefixes import stored_names
from workbench.weights.timm_layout import from_timm, is_timm

FORMAT = "normfree-workbench/1"
HOLDERS = ("state_dict_ema", "state_dict", "model_state_dict", "model", "module")  # keys of a state dict within a file


@dataclass(frozen=True)
class Weights:
    """The contents of a file of weights.

    Attributes:
        file: The file.
        layout: "haiku", "timm" or "workbench".
        content: {module: {name: array}} in the layout "haiku", otherwise {our name: tensor}.
        recipe: Arguments of `create_model` for its network, if the file names one.
        named: Whether `save_checkpoint` wrote the file. It then names its network, unless a file cannot.
        preprocess: How its images are made. None: as for ImageNet.
    """

    file: Path
    layout: str
    content: dict[str, Any]
    recipe: dict | None = None
    named: bool = False
    preprocess: dict | None = None

    def state_for(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the arrays under the model's names, and {model's name: file's name}."""
        state, labels = haiku_state(self.content, model) if self.layout == "haiku" else (self.content, {})
        ours = {plain: name for name, plain in stored_names(model.state_dict(keep_vars=True)).items()}
        theirs = stored_names(state)
        return {ours.get(theirs[name], name): tensor for name, tensor in state.items()}, labels

    def shape(self) -> tuple[int, int, int]:
        """Read (classes, input channels, blocks) off the arrays. The defaults are 0, 3 and 0."""
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


def read_weights(file: Path) -> Weights:
    """Read a file. Nothing in it is executed.

    Args:
        file: Ends in .npz (as released), .safetensors, .pth, .pt or .bin.

    Raises:
        WorkbenchError: If the file is damaged or hostile, holds no weights, or has another ending.
    """
    if file.suffix == ".npz":
        return Weights(file, "haiku", read_pickle(file))
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
                state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            cause = shown(error, quote=False)
            raise WorkbenchError(f"Cannot read {file} as safetensors ({cause}). Fetch it again.") from error
        if metadata.get("format") == FORMAT:
            recipe, preprocess = read_metadata(metadata, file)
            return Weights(file, "workbench", state, recipe, True, preprocess)
    elif file.suffix in (".pth", ".pt", ".bin"):
        state = _read_torch(file)
    else:
        raise WorkbenchError(f"{file} must end in .npz (as released), .safetensors, .pth, .pt or .bin.")
    plain = stored_names(state)
    state = {plain[name]: tensor for name, tensor in state.items()}
    wrong = [name for name, tensor in state.items() if tensor.is_meta or tensor.layout != torch.strided]
    if wrong:
        raise WorkbenchError(f"{file} holds no dense tensor under {wrong[0]}. Save its weights as ordinary tensors.")
    if is_timm(state):
        return Weights(file, "timm", from_timm(state))
    return Weights(file, "workbench", state)


def _read_torch(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's message advises to load the file anyway
        raise WorkbenchError(
            f"{file} is damaged, or contains more than tensors. It was refused and nothing in it was executed."
        ) from error
    except Exception as error:  # a damaged file can raise anything in torch.load
        cause = shown((str(error).splitlines() or [type(error).__name__])[0], quote=False)
        raise WorkbenchError(f"Cannot read {file} as weights ({cause}); nothing in it was executed.") from error
    for _ in HOLDERS:  # one may hold another
        inner = [state[key] for key in HOLDERS if isinstance(state, dict) and isinstance(state.get(key), dict)]
        state = inner[0] if inner else state
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise WorkbenchError(f"{file} holds no state dict. Save a dict of names and tensors.")
    return state
