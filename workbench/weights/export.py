"""Exports a network: with plain convolutions, by torch.export, or as ONNX.

Weight standardisation does not depend on the input. At inference it is a constant, which `fold` computes once.
"""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from workbench.copies import copied
from workbench.errors import WorkbenchError
from workbench.files import target_path, write_whole
from workbench.models.layers import PlainConv2d, ScaledStdConv2d, same_padding
from workbench.models.network import Network
from workbench.models.timm_nets import TimmConv2d
from workbench.optim.names import unwrapped
from workbench.user_errors import description, place_of

# Odd after every halving: at an even size the tracer assumes exact divisions, and then cannot solve its own guards.
TRACED_AT = (97, 129)


class SamePad2d(nn.Module):
    """TF-SAME padding in front of a convolution of stride 2."""

    def __init__(self, kernel_size: int):
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """Pad: (N, C, H, W) -> (N, C, H + pads, W + pads)."""
        top, bottom = same_padding(x.shape[-2], self.kernel_size, 2)
        left, right = same_padding(x.shape[-1], self.kernel_size, 2)
        return F.pad(x, (left, right, top, bottom))


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Copy a network for inference, with plain nn.Conv2d that compute the same.

    The constants gain, gamma and 1 / beta are folded into the weights. The factors alpha and skip gain are folded into
    the last convolution of a branch, unless a gate follows it. A convolution of stride 2 becomes (SamePad2d,
    nn.Conv2d), because its padding depends on the size.

    Returns:
        The copy, in evaluation mode. Signal propagation needs the original instead.
    """
    folded: Any = copied(unwrapped(model)).eval()
    for block in folded.blocks if isinstance(folded, Network) else ():  # of another network they may be anything
        gated = (
            getattr(block, "squeeze_excite", None) is not None or getattr(block, "channel_attention", None) is not None
        )
        if isinstance(block.conv2, ScaledStdConv2d) and (not gated or getattr(block, "attention_inside", False)):
            _fold_gain(block)
    modules: list[Any] = list(folded.modules())
    foreign = {m: m.plain() for m in modules if hasattr(m, "plain")}  # layers that `normfree` made
    for module in list(folded.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ScaledStdConv2d | PlainConv2d):
                setattr(module, name, _plain(child))
            elif child in foreign:
                setattr(module, name, foreign[child])
    return folded


def _fold_gain(block: Any) -> None:
    """Fold alpha * skip_gain, the factor of the whole branch, into its last convolution."""
    factor = block.alpha
    if hasattr(block, "skip_gain"):
        factor = factor * block.skip_gain.clone()
        block.skip_gain.fill_(1.0)
    block.conv2.gain.mul_(factor)
    block.conv2.bias.mul_(factor)
    block.alpha = 1.0


def _plain(conv: ScaledStdConv2d | PlainConv2d) -> nn.Module:
    weight = conv.standardized_weight() if isinstance(conv, ScaledStdConv2d) else conv.weight * conv.scale
    same = conv.stride == 2 and conv.kernel_size > 1 and not isinstance(conv, TimmConv2d)
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        padding=0 if same else conv.kernel_size // 2,
        groups=conv.groups,
        bias=conv.bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    plain.weight.copy_(weight)
    if conv.bias is not None and plain.bias is not None:
        plain.bias.copy_(conv.bias)
    return nn.Sequential(SamePad2d(conv.kernel_size), plain) if same else plain


def export_program(model: nn.Module, example: Tensor | None = None) -> ExportedProgram:
    """Trace a network by torch.export, in evaluation mode.

    Args:
        model: A network of this library, or another one, as it is or folded.
        example: Images (N, C, H, W) with N > 1. Only networks of this library can do without. With an example the size
            of the images is fixed, and the size of the batch is free. Without, both are free.

    Raises:
        WorkbenchError: If another network has no example, or cannot be traced.
    """
    model = unwrapped(model)
    if example is not None:
        return _traced(model, example)
    if not isinstance(model, Network):
        raise WorkbenchError(
            f"A {type(model).__name__} is not a network of this library, so its images are not known. Pass `example`, "
            "such as torch.zeros(2, 3, 224, 224)."
        )
    first = next(p for p in model.parameters() if p.ndim == 4)
    images = torch.zeros(2, first.shape[1], *TRACED_AT, device=first.device, dtype=first.dtype)
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    return torch.export.export(copied(model).eval(), (images,), dynamic_shapes={"x": free})


def _traced(model: nn.Module, example: Tensor) -> ExportedProgram:
    """Trace a network whose forward may be of any kind."""
    try:
        return torch.export.export(copied(model).eval(), (example,), dynamic_shapes=({0: Dim.DYNAMIC},))
    except Exception as error:  # of the network's code, or of torch about it
        raise WorkbenchError(
            f"torch.export cannot trace {type(model).__name__} on images of shape {tuple(example.shape)} "
            f"({description(error)}){place_of(error)}. Take out of its `forward` what depends on values or on the "
            "batch size, or export the network with other tools."
        ) from error


def export_pt2(model: nn.Module, file: str | Path, example: Tensor | None = None) -> Path:
    """Write the exported program as a .pt2 file for torch.export.load.

    Args:
        model: The network.
        file: Path that ends in .pt2.
        example: Images (N, C, H, W), see `export_program`.

    Raises:
        WorkbenchError: If `file` does not end in .pt2 or cannot be written, or the network cannot be exported.
    """
    file = target_path(file, (".pt2",))
    program = export_program(model, example)
    return write_whole(file, lambda part: _save_program(program, part))


def _save_program(program: ExportedProgram, part: Path) -> None:
    with open(part, "wb") as stream:
        torch.export.save(program, stream)


def export_onnx(model: nn.Module, file: str | Path, example: Tensor | None = None) -> Path:
    """Write an ONNX file, for any N, H and W, or for any N if there is an example.

    Its input is `images` (N, C, H, W), and its output `logits` (N, num_classes).

    Args:
        model: The network.
        file: Path that ends in .onnx.
        example: Images (N, C, H, W), see `export_program`.

    Raises:
        WorkbenchError: If packages are missing, `file` does not end in .onnx or cannot be written, or the network
            cannot be exported.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise WorkbenchError(f"ONNX export needs {' and '.join(missing)}: `pip install 'normfree-workbench[export]'`.")
    file = target_path(file, (".onnx",))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about opset versions, which users cannot change
    program = torch.onnx.export(
        export_program(model, example), input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
    )
    assert program is not None  # None only with dynamo=False
    return write_whole(file, program.save)
