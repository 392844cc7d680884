"""The memory order of a network's weights and images: contiguous, or channels last.

Convolutions on a CPU are faster in channels last, mostly in backward. So are those in half precision on a GPU, whose
tensor cores read it. The results of the two differ by rounding only.
"""

import torch
from torch import Tensor, nn

CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"
LAYOUTS = (CONTIGUOUS, CHANNELS_LAST)
FORMATS = {CONTIGUOUS: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}


def faster(device: torch.device, *, half: bool = False) -> str:
    """Return the layout that is usually faster.

    Args:
        device: Where the network runs.
        half: Whether it runs in half precision.
    """
    return CHANNELS_LAST if device.type == "cpu" or (device.type == "cuda" and half) else CONTIGUOUS


def arrange(model: nn.Module, layout: str) -> nn.Module:
    """Arrange the weights of a network, and from now on the images that it is called with.

    Args:
        model: The network. It is changed in place.
        layout: One of `LAYOUTS`.

    Returns:
        The network.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=FORMATS[layout])
    for number, hook in list(model._forward_pre_hooks.items()):
        if hook is _channels_last:
            del model._forward_pre_hooks[number]
    if layout == CHANNELS_LAST:
        model.register_forward_pre_hook(_channels_last)
    return model


def arrange_if_it_runs(model: nn.Module, layout: str, example: Tensor | None) -> str:
    """Arrange a network, but contiguously if it does not run otherwise.

    Code such as `x.view(len(x), -1)` needs contiguous maps.

    Args:
        model: The network. It is changed in place.
        layout: One of `LAYOUTS`.
        example: An input (N, C, H, W). None: nobody knows, so contiguous.

    Returns:
        The layout it has now.
    """
    arrange(model, layout)
    if layout != CONTIGUOUS and not (example is not None and _runs(model, example)):
        layout = CONTIGUOUS
        arrange(model, layout)
    return layout


def arranged(x: Tensor, layout: str) -> Tensor:
    """Return images (N, C, H, W) in a layout. Other inputs stay as they are."""
    return x.contiguous(memory_format=FORMATS[layout]) if x.ndim == 4 else x


def _runs(model: nn.Module, example: Tensor) -> bool:
    """Return whether a network runs forward and backward. Its statistics and its mode stay unchanged."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.random.fork_rng(devices=[example.device] if example.is_cuda else []), torch.enable_grad():
            out = model.eval()(example)
            learnt = [p for p in model.parameters() if p.requires_grad]
            torch.autograd.grad(out.float().sum(), learnt, allow_unused=True)
    except Exception:  # whatever a user's code raises
        return False
    finally:
        for module, mode in modes.items():
            module.training = mode
    return True


def _channels_last(module: nn.Module, args: tuple) -> tuple:
    """Before a network runs: put its images into channels last."""
    return tuple(arranged(x, CHANNELS_LAST) if isinstance(x, Tensor) else x for x in args)
