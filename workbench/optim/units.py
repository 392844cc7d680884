"""Which part of a parameter is a unit: the weights of one output.

Source: NFNet paper, section 3 ("the weights of one output"), and the authors' code for its layers. The rest follows
from the same rule.

    layers                                                a unit is
    Linear, Bilinear, Conv, RNN, LSTM, GRU, attention     an index of dimension 0: a row or a filter
    Embedding, EmbeddingBag                               an index of dimension 0: the vector of one token
    ConvTranspose; your own layer that computes x @ W     an index of dimension 1, in each group of channels
    LayerNorm and RMSNorm over several dimensions         the whole parameter, like any gain
    a bias, a gain, a PReLU, BatchNorm                    the whole parameter
"""

from torch import fx, nn
from torch.nn.modules.conv import _ConvTransposeNd

from workbench.optim.output import Undecided, operation, traced
from workbench.optim.sharded import WHOLE, Units

TRANSPOSES = ("t", "T", "mT", "transpose", "permute", "swapaxes")


def units_of(model: nn.Module) -> dict[int, int]:
    """Return the layout of those parameters whose units are not the indices of dimension 0.

    Your own layers are followed without running them. A parameter of several layers has the units of the first.

    Args:
        model: Any network.

    Returns:
        By `id` of the parameter: the number of groups if units are indices of dimension 1, or `WHOLE`.
    """
    by_parameter: dict[int, Units] = {}
    kernels: dict[type, dict[str, Units]] = {}  # by class, because a large network has many layers of one class
    for module in model.modules():
        shapes = {name: p.ndim for name, p in module.named_parameters(recurse=False) if p.ndim >= 2}
        is_custom = bool(shapes) and not type(module).__module__.startswith("torch.")
        if is_custom and 2 not in shapes.values() and type(module) in kernels:
            layouts = kernels[type(module)]
        elif is_custom and not isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.Embedding):
            layouts = kernels[type(module)] = _followed(module)
        else:
            layouts = _known(module)
        for name, p in module.named_parameters():
            if name in shapes or name in layouts:
                by_parameter.setdefault(id(p), layouts.get(name))
    return {key: units for key, units in by_parameter.items() if units is not None}


def _known(module: nn.Module) -> dict[str, Units]:
    """Return the layouts of a layer of torch, by parameter name."""
    if isinstance(module, _ConvTransposeNd):  # with the parameters of a parametrization
        return {name: module.groups for name, _ in module.named_parameters()}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {name: WHOLE for name, _ in module.named_parameters()}
    return {}


def _followed(module: nn.Module) -> dict[str, Units]:
    """Return the layouts of the direct parameters of a user's module, by following its forward pass."""
    try:
        graph = traced(module)
    except Undecided:
        return {}
    shapes = {name: p.ndim for name, p in module.named_parameters(recurse=False)}
    layouts: dict[str, Units] = {}
    for node in graph.nodes:
        for place, arg in enumerate(node.args):
            name, flipped = _parameter(arg)
            if shapes.get(name, 0) >= 2:
                units = _units(node, place, shapes[name], flipped)
                if units is not None:
                    layouts.setdefault(name, units)
    return layouts


def _parameter(arg: object) -> tuple[str, bool]:
    """Return the parameter that an argument is, and whether it is transposed."""
    flipped = False
    while isinstance(arg, fx.Node) and arg.op != "get_attr":
        name = arg.args[1] if operation(arg) == "getattr" else operation(arg)
        if name not in TRANSPOSES:
            return "", False
        arg, flipped = arg.args[0], not flipped
    return (str(arg.target), flipped) if isinstance(arg, fx.Node) else ("", False)


def _units(node: fx.Node, place: int, ndim: int, flipped: bool) -> Units:
    """Return the layout of a parameter that is argument number `place` of an operation."""
    name = operation(node)
    if name.startswith("conv_transpose") and place == 1 and not flipped:
        groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
        return groups if isinstance(groups, int) else None
    if ndim != 2:
        return None
    if name == "einsum":
        terms, _, out = str(node.args[0]).replace(" ", "").partition("->")
        rows, columns = (terms.split(",")[place - 1] + "  ")[:2]
        return 1 if flipped is (rows in out) and flipped is not (columns in out) else None
    by_column = (name in ("matmul", "mm") and place == 1) or (name == "addmm" and place == 2)
    return 1 if (by_column and not flipped) or (name == "linear" and place == 1 and flipped) else None
