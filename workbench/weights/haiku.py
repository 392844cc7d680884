"""Translates between the layout of the authors' released files and ours, one to one.

Released: {module path: {name: array}}, convolutions HWIO, linear weights (in, out), scalars ().
Ours: OIHW, (out, in), and the skip gain (1,), because sharded training refuses scalars. Vectors are the same in both.
"""

import re

import numpy as np
import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.models.nf_regnet import NFRegNet
from workbench.models.nf_resnet import NFResNet
from workbench.models.nfnet import NFNet
from workbench.optim.names import unwrapped
from workbench.weights.pickles import Tree
from workbench.weights.strict import load_strictly

# family: (name of the net in the files, name of a block in the files)
_NAMES = {NFNet: ("NFNet", "nf_block"), NFResNet: ("NF_ResNet", "nf_res_block"), NFRegNet: ("NF_RegNet", "nf_block")}
_SQUEEZE_EXCITE = {"reduce": "linear", "expand": "linear_1"}


def from_haiku(tree: Tree, model: nn.Module) -> None:
    """Load a released tree into `model`, in place and strictly.

    Args:
        tree: {"NFNet/~/stem_conv0": {"w": array, "gain": array, "bias": array}, ...}.
        model: An NFNet, NF-ResNet or NF-RegNet.

    Raises:
        WorkbenchError: If arrays are missing, extra or of the wrong shape. The model is then unchanged.
    """
    load_strictly(model, *haiku_state(tree, model))


def haiku_state(tree: Tree, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Translate a tree to the model's names and axes.

    Returns:
        The state, and {our name: released name}. Unknown arrays keep their released names in the state.

    Raises:
        WorkbenchError: If `tree` is no dict of dicts of numbers, or the model has no released layout.
    """
    if not isinstance(tree, dict):
        raise WorkbenchError(f"`tree` must be a dict of modules, got a {type(tree).__name__}.")
    names = haiku_names(model)
    back = {place: ours for ours, place in names.items()}
    state, labels = {}, {ours: "/".join(place) for ours, place in names.items()}
    for module, arrays in tree.items():
        if not isinstance(arrays, dict):
            raise WorkbenchError(f"'{module}' of `tree` must be a dict of arrays, got a {type(arrays).__name__}.")
        for name, array in arrays.items():
            ours = back.get((module, name), f"{module}/{name}")
            state[ours] = _to_torch(ours, np.asarray(array))
    return state, labels


def to_haiku(model: nn.Module) -> Tree:
    """Translate the model's parameters to numpy arrays under the released names.

    Raises:
        WorkbenchError: If the model has no released layout.
    """
    model = unwrapped(model)
    parameters = dict(model.named_parameters())
    tree: Tree = {}
    for ours, (module, name) in haiku_names(model).items():
        tree.setdefault(module, {})[name] = _to_numpy(ours, parameters[ours].detach())
    return tree


def haiku_names(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Return {our parameter: (module path, name)} of the released layout.

    Raises:
        WorkbenchError: If the model has no released layout.
    """
    if type(model) not in _NAMES:
        known = ", ".join(family.__name__ for family in _NAMES)
        raise WorkbenchError(f"Only {known} have a released layout, got a {type(model).__name__}.")
    net, block = _NAMES[type(model)]
    return {name: _released(name, net, block) for name, _ in model.named_parameters()}


def _released(ours: str, net: str, block: str) -> tuple[str, str]:
    path, _, name = ours.rpartition(".")
    inner = re.fullmatch(r"blocks\.(\d+)\.?(.*)", path)
    if inner:
        index, rest = int(inner[1]), inner[2]
        home = f"{net}/~/{block}" + (f"_{index}" if index else "")
        if not rest:
            return home, name  # skip_gain belongs to the block itself
        if rest.startswith("squeeze_excite."):
            linear = _SQUEEZE_EXCITE[rest.rpartition(".")[2]]
            return f"{home}/~/squeeze_excite/~/{linear}", {"weight": "w", "bias": "b"}[name]
        return f"{home}/~/{rest}", {"weight": "w"}.get(name, name)
    if path == "linear":
        return f"{net}/~/linear", {"weight": "w", "bias": "b"}[name]
    path = "initial_conv" if path == "stem" else path.replace("stem.", "stem_conv")
    return f"{net}/~/{path}", {"weight": "w"}.get(name, name)


def _to_torch(ours: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise WorkbenchError(f"{ours} must hold numbers, got {array.dtype}.")
    tensor = torch.from_numpy(np.array(array))
    if ours.endswith(".skip_gain"):
        return tensor.reshape(1) if tensor.ndim == 0 else tensor
    return {4: lambda t: t.permute(3, 2, 0, 1), 2: lambda t: t.T}.get(tensor.ndim, lambda t: t)(tensor).contiguous()


def _to_numpy(ours: str, tensor: Tensor) -> np.ndarray:
    if ours.endswith(".skip_gain"):
        tensor = tensor.reshape(())
    tensor = {4: lambda t: t.permute(2, 3, 1, 0), 2: lambda t: t.T}.get(tensor.ndim, lambda t: t)(tensor)
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # numpy has no bfloat16
    return np.array(tensor.cpu().numpy(), order="C")
