"""A file of weights read into arrays; nothing in it is executed."""

import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.models import zoo
from workbench.user_code import is_user_code
from workbench.weights.haiku import haiku_state
from workbench.weights.pickles import Tree, read_pickle
from workbench.weights.timm_layout import from_timm, is_timm

FORMAT = "normfree-workbench/1"


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
        if metadata.get("format") == FORMAT:
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
        if recipe is not None and not is_user_code(recipe["name"]):  # a file must not have code of the user's imported
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
