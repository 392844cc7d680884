"""Translates between timm's names and shapes and ours, to read its files and write them.

timm has gains (O, 1, 1, 1), squeeze-excite weights as 1x1 convolutions and the skip gain as a scalar. It counts blocks
per stage. Its `dm_nfnet_f*` are our `nfnet_f*`. Its other nets with weights are those of timm_nets.py.
"""

import re

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.models.nfnet import NFNet
from workbench.models.timm_nets import TimmNet
from workbench.optim.names import unwrapped

IN_TIMM = (NFNet, TimmNet)
_CONVS = {"conv_shortcut": "downsample.conv", "conv0": "conv1", "conv1": "conv2", "conv1b": "conv2b", "conv2": "conv3"}
_LINEARS = {"reduce": "fc1", "expand": "fc2"}


def is_timm(state: dict[str, Tensor]) -> bool:
    """Whether the names are those of timm's normalizer-free nets."""
    return any(name.startswith("stages.") for name in state) and any(name.startswith("stem.conv") for name in state)


def from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate a timm state dict to our names and shapes.

    Unknown names stay as they are. Loading refuses them later.
    """
    starts = _block_starts(state)
    return {_our_name(name, starts): _our_shape(name, tensor) for name, tensor in state.items()}


def to_timm(model: nn.Module) -> dict[str, Tensor]:
    """Translate a model's state dict to timm's layout.

    Returns:
        A state dict that timm loads strictly: into `dm_nfnet_f*` for an NFNet, into its own nets for a `timm_*`.

    Raises:
        WorkbenchError: If timm has no net that computes the same.
    """
    model = unwrapped(model)
    if not isinstance(model, IN_TIMM):
        raise WorkbenchError(
            f"timm has no net that computes a {type(model).__name__}. Its layout is for nfnet_* and timm_* models."
        )
    numbers, count = {}, {}
    for index, block in enumerate(model.blocks):
        numbers[index] = f"{block.stage}.{count.setdefault(block.stage, 0)}"
        count[block.stage] += 1
    inside = isinstance(model, TimmNet) and model.blocks[0].attention_inside
    state = {}
    for name, tensor in model.state_dict().items():
        theirs = _their_name(name, numbers, "attn" if inside else "attn_last", single=len(model.stem) == 1)
        state[theirs] = _their_shape(name, tensor)
    return state


def _block_starts(state: dict[str, Tensor]) -> dict[int, int]:
    """Return {stage: index of its first block in the whole net}."""
    depth: dict[int, int] = {}
    for name in state:
        match = re.match(r"stages\.(\d+)\.(\d+)\.", name)
        if match:
            stage, block = int(match[1]), int(match[2])
            depth[stage] = max(depth.get(stage, 0), block + 1)
    return {stage: sum(depth.get(s, 0) for s in range(stage)) for stage in depth}


def _our_name(name: str, starts: dict[int, int]) -> str:
    match = re.fullmatch(r"stages\.(\d+)\.(\d+)\.(.+)", name)
    if match:
        index, rest = starts[int(match[1])] + int(match[2]), match[3]
        back = {theirs: ours for ours, theirs in _CONVS.items()}
        path, _, leaf = rest.rpartition(".")
        if path in back:
            rest = f"{back[path]}.{leaf}"
        elif re.fullmatch(r"attn(_last)?\.fc[12]", path):
            rest = f"squeeze_excite.{'reduce' if path.endswith('1') else 'expand'}.{leaf}"
        elif re.fullmatch(r"attn(_last)?\.conv", path):
            rest = f"channel_attention.conv.{leaf}"
        elif rest == "skipinit_gain":
            rest = "skip_gain"
        return f"blocks.{index}.{rest}"
    stem = re.fullmatch(r"stem\.conv(\d?)\.(.+)", name)
    if stem:
        return f"stem.{int(stem[1] or 1) - 1}.{stem[2]}"
    return re.sub(r"^head\.fc\.", "linear.", name)


def _our_shape(name: str, tensor: Tensor) -> Tensor:
    if name.endswith(".gain") and tensor.ndim == 4:
        return tensor.flatten()
    if re.search(r"\.fc[12]\.weight$", name) and tensor.ndim == 4:
        return tensor.flatten(1)
    return tensor.reshape(1) if name.endswith("skipinit_gain") and tensor.ndim == 0 else tensor


def _their_name(name: str, numbers: dict[int, str], attention: str, single: bool) -> str:
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match:
        rest = match[2].replace("channel_attention.", f"{attention}.").replace("skip_gain", "skipinit_gain")
        path, _, leaf = rest.rpartition(".")
        if path in _CONVS:
            rest = f"{_CONVS[path]}.{leaf}"
        elif path.startswith("squeeze_excite."):
            rest = f"{attention}.{_LINEARS[path.rpartition('.')[2]]}.{leaf}"
        return f"stages.{numbers[int(match[1])]}.{rest}"
    stem = re.fullmatch(r"stem\.(\d+)\.(.+)", name)
    if stem:
        return f"stem.conv.{stem[2]}" if single else f"stem.conv{int(stem[1]) + 1}.{stem[2]}"
    return re.sub(r"^linear\.", "head.fc.", name)


def _their_shape(name: str, tensor: Tensor) -> Tensor:
    if name.endswith("skip_gain"):
        return tensor.reshape(()).clone()
    if name.endswith(".gain"):
        return tensor.reshape(-1, 1, 1, 1).clone()
    if ".squeeze_excite." in name and name.endswith(".weight"):
        return tensor[:, :, None, None].clone()
    return torch.clone(tensor)
