"""Which weights produce the output of a network: its classifier, whatever its name and its type.

The forward pass is written down as a graph of operations, without running it (torch.fx). Children stay closed. The way
back from the output ends at the first layer that has a weight. If that is a child with children, it is opened in the
same way, so only the end of a network must be traceable. If it is not, torch writes down the whole network on an
example input, with tensors that have no data.

A sum of layers of which one feeds another has no last layer. An example is the end of a residual network.
"""

import copy
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from workbench.optim.names import unwrapped

PRODUCT = re.compile(r"_?(linear|bilinear|trilinear|conv\w*|matmul|mm|addmm|bmm|baddbmm|einsum|embedding\w*|mv)$")
NO_DATA = ("shape", "size", "sym_size", "dim", "ndim", "numel", "device", "dtype", "is_cuda", "requires_grad")


class Undecided(Exception):
    """Nothing decides which layers produce the output."""


class Layers(NamedTuple):
    """The last layers before an output.

    Attributes:
        weights: Their weights.
        open: Whether the input also reaches the output past all weights.
    """

    weights: list[Tensor]
    open: bool


class _Output(NamedTuple):
    """One output: its last layers by node, the nodes that nothing decides, and whether the input reaches it."""

    ends: dict[fx.Node, list[Tensor]]
    unknown: list[fx.Node]
    open: bool


def last_weights(model: nn.Module, example: object = None) -> list[Tensor]:
    """Return the weights of the layers that produce the outputs.

    Args:
        model: Any network.
        example: An input, or a tuple or dict of inputs. It is used if the forward pass cannot be followed without.

    Raises:
        Undecided: If the forward pass cannot be followed to its last layers, or ends in a sum that has none.
    """
    model = unwrapped(model)
    try:
        layers = _opened(model)
    except Undecided:
        if example is None:
            raise
        layers = _on_example(model, example)
    return list({id(w): w for w in layers.weights}.values())


def weights_of(module: nn.Module, recurse: bool = True) -> list[Tensor]:
    """Return the matrices and kernels of a module. Gains with size-1 axes count only if it has nothing else."""
    return _weights(module.parameters(recurse))


def _weights(tensors) -> list[Tensor]:
    shaped = [t for t in tensors if t.ndim >= 2]
    return [t for t in shaped if sum(n != 1 for n in t.shape) > 1] or shaped


class _ClosedChildren(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def traced(module: nn.Module) -> fx.Graph:
    """Write down the forward pass of a module, with closed children and with defaults for optional arguments.

    Raises:
        Undecided: If torch.fx cannot follow it.
    """
    shallow = object.__new__(type(module))  # a forward pass may set attributes, which must not reach the module
    vars(shallow).update({k: copy.copy(v) if isinstance(v, dict | list | set) else v for k, v in vars(module).items()})
    try:
        parameters = inspect.signature(module.forward).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        return _ClosedChildren().trace(shallow, concrete_args=defaults)
    except Exception as error:  # whatever the network's code does with a stand-in for a tensor
        raise Undecided from error


def constants(module: nn.Module, graph: fx.Graph) -> dict[fx.Node, list[Tensor]]:
    """Return the parameters that each constant node of a module's graph stands for."""
    by_node: dict[fx.Node, list[Tensor]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            value = getattr(module.get_submodule(path), name, None)
            if isinstance(value, nn.Parameter):
                by_node[node] = [value]
        elif node.op == "call_module" and not node.all_input_nodes:  # computes a weight: a parametrization
            by_node[node] = weights_of(module.get_submodule(str(node.target)))
    return by_node


def operation(node: fx.Node) -> str:
    """Return the name of a node's function or method, such as ``conv2d`` or ``matmul``."""
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0]


def _opened(module: nn.Module) -> Layers:
    """Return the last layers of a module, by opening it."""
    if not weights_of(module):
        return Layers([], open=True)
    if isinstance(module, nn.MultiheadAttention):
        return Layers([module.out_proj.weight], open=False)
    children = list(module.children())
    try:
        graph = traced(module)
    except Undecided:
        weighty = [child for child in children if weights_of(child)]
        if not children and not isinstance(module, nn.RNNBase):
            return Layers(weights_of(module), open=False)  # one layer, whatever it computes
        if len(weighty) == 1 and type(module).forward is nn.Module.forward:  # it only holds a network
            return _opened(unwrapped(weighty[0]))
        raise
    known, direct = constants(module, graph), [] if children else weights_of(module)
    return _last(graph, known, lambda node: _opened(unwrapped(module.get_submodule(str(node.target)))), direct)


def _on_example(model: nn.Module, example: object) -> Layers:
    """Return the last layers of a network by following all operations on an example, without data."""
    from torch.fx.experimental.proxy_tensor import make_fx  # slow to import

    args = example if isinstance(example, tuple) else () if isinstance(example, dict) else (example,)
    kwargs = example if isinstance(example, dict) else {}
    device = next(model.parameters()).device
    args, kwargs = tree_map_only(Tensor, lambda x: x.to(device), (args, kwargs))
    params, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def run(params: dict, buffers: dict, args: tuple, kwargs: dict) -> list[Tensor]:
        return list(_tensors(torch.func.functional_call(model, (params, buffers), args, kwargs)))

    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            graph = make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)(params, buffers, args, kwargs).graph
    except Exception as error:  # of the network's code
        first_line = (str(error).splitlines() or [""])[0]
        raise Undecided(f"`example` does not run: {type(error).__name__}: {first_line}") from error
    finally:
        for module, attributes in before:  # the forward pass may have set some
            vars(module).clear()
            vars(module).update(attributes)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    known: dict[fx.Node, list[Tensor]] = {n: [p] for n, p in zip(placeholders, params.values(), strict=False)}
    known |= {node: [] for node in placeholders[len(params) : len(params) + len(buffers)]}
    return _last(graph, known)


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors in an output of any structure."""
    if isinstance(value, Tensor):
        yield value
        return
    if dataclasses.is_dataclass(value) and not isinstance(value, dict):
        value = vars(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for part in parts:
        yield from _tensors(part)


def _last(
    graph: fx.Graph,
    known: dict[fx.Node, list[Tensor]],
    child: Callable[[fx.Node], Layers] | None = None,
    direct: list[Tensor] | None = None,
) -> Layers:
    """Return the last layers of a graph.

    Args:
        graph: The operations.
        known: The parameters that constant nodes stand for.
        child: Gives the last layers of a child that is called.
        direct: The weights of a product whose factor is not in `known`, such as one that a hook computes.
    """
    data = _data(graph, known)

    def layers(node: fx.Node) -> Layers:
        if node.op == "call_module" and child is not None:
            return child(node)
        if node.op not in ("call_function", "call_method") or not PRODUCT.match(operation(node)):
            return Layers([], open=True)
        factors = [n for n in node.all_input_nodes if n not in data]
        weights = (
            _weights([t for n in _before(factors) for t in known.get(n, [])]) or (direct if factors else None) or []
        )
        return Layers(weights, open=not weights)

    (end,) = (node for node in graph.nodes if node.op == "output")
    outputs = [_way_back(node, layers, data) for node in end.all_input_nodes]
    decided = [o for o in outputs if not o.unknown and not _upstream(o.ends, o.ends)]
    ends = {node: weights for output in decided for node, weights in output.ends.items()}
    inner = _upstream(ends, ends)
    for output in outputs:  # one without a decision does no harm if it feeds another
        last = [*output.ends, *output.unknown]
        if output not in decided and len(_upstream(last, ends)) < len(last):
            raise Undecided
    weights = [w for node, each in ends.items() if node not in inner for w in each]
    return Layers(weights, any(output.open for output in outputs))


def _data(graph: fx.Graph, known: dict) -> set[fx.Node]:
    """Return the nodes that are computed from the input, without its shape alone."""
    data: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            if node not in known:
                data.add(node)
        elif any(n in data for n in node.all_input_nodes):
            name = node.args[1] if operation(node) == "getattr" else operation(node)
            if name not in NO_DATA:
                data.add(node)
    return data


def _way_back(output: fx.Node, layers: Callable[[fx.Node], Layers], data: set[fx.Node]) -> _Output:
    """Walk from an output to its last layers."""
    ends: dict[fx.Node, list[Tensor]] = {}
    unknown: list[fx.Node] = []
    reached, seen, nodes = False, set(), [output]
    while nodes:
        node = nodes.pop()
        if node in seen or node not in data:
            continue
        seen.add(node)
        try:
            weights, passes = layers(node)
        except Undecided:
            unknown.append(node)
            continue
        if weights:
            ends[node] = weights
        if passes:
            reached |= node.op == "placeholder"
            nodes += reversed(node.all_input_nodes)
    return _Output(ends, unknown, reached)


def _before(nodes: list[fx.Node]) -> list[fx.Node]:
    """Return the nodes and all that they are computed from."""
    seen: dict[fx.Node, None] = {}
    nodes = list(nodes)
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen[node] = None
            nodes += node.all_input_nodes
    return list(seen)


def _upstream(nodes, others) -> set[fx.Node]:
    """Return those of `nodes` from which another of `others` is computed."""
    before = {n for other in others for n in _before(other.all_input_nodes)}
    return {node for node in nodes if node in before}
