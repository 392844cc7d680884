"""The classifier of any network, which AGC does not clip.

Source: NFNet paper, section 3: "every parameter except the linear weight of the classifier".

The classifier is what produces the output, see `workbench.optim.output`. If the forward pass cannot be followed, the
last child of the network is the classifier if it is a layer and alone has the name of a head. Otherwise the caller must
decide.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from workbench.errors import WorkbenchError, unknown
from workbench.optim.names import plain_names, unwrapped
from workbench.optim.output import Undecided, last_weights, weights_of

HEAD = re.compile(r"(\w+_)?(linear|fc|head|classifier)s?(_\w+|\d+)?$")


def classifier_weights(model: nn.Module, example: object = None) -> list[str]:
    """Return the names of the weights that produce the output, one per head.

    Names are those of `plain_names`. The list is empty for a network without weights, and for one with
    ``num_classes`` 0.

    Args:
        model: Any network. Its forward pass is followed without running it.
        example: An input, or a tuple or dict of inputs. It is used if the forward pass cannot be followed without.

    Raises:
        WorkbenchError: If neither the forward pass nor a name decides.
    """
    network = unwrapped(model)
    classes = getattr(network, "num_classes", None)
    if (isinstance(classes, int) and classes == 0) or not weights_of(model):
        return []
    params = list(model.named_parameters())
    names = plain_names([name for name, _ in params])
    by_id = {id(p): name for name, (_, p) in zip(names, params, strict=True)}
    try:
        return [by_id[id(weight)] for weight in last_weights(model, example)]
    except Undecided as reason:
        chosen = _by_name(network)
        if chosen:
            return [by_id[id(weight)] for weight in chosen]
        why = f" ({reason})" if str(reason) else ""
        raise WorkbenchError(
            f"Nothing decides which weight of {type(network).__name__} is the classifier, to leave it unclipped{why}. "
            "Pass its name as `classifier`, or an input as `example`, or `classifier=()` if there is none."
        ) from reason


def named_weights(words: Mapping[str, set[str]], params: Mapping[str, Tensor], chosen: Iterable[str]) -> set[str]:
    """Return the weights that a caller names as the classifier.

    Args:
        words: The names and aliases of each parameter.
        params: The parameters by name.
        chosen: Names or patterns of parameters or of layers.

    Raises:
        WorkbenchError: If a name matches no weight.
    """
    weights: set[str] = set()
    for name in [chosen] if isinstance(chosen, str) else chosen:
        patterns = (name, f"{name}.*")
        matched = {
            parameter
            for parameter, aliases in words.items()
            if params[parameter].ndim >= 2 and any(fnmatch.fnmatch(a, p) for a in aliases for p in patterns)
        }
        if not matched:
            raise unknown("classifier", name, {word for aliases in words.values() for word in aliases})
        weights |= matched
    return weights


def _by_name(network: nn.Module) -> list[Tensor]:
    """Return the weight of the last child if it is a layer and no other child has the name of a head."""
    children = {name: child for name, child in network.named_children() if weights_of(child)}
    heads = [name for name in children if HEAD.match(name)]
    if len(children) == 1 and not heads:
        return _by_name(unwrapped(*children.values()))
    if not heads or heads != list(children)[-1:]:
        return []
    head = children[heads[0]]
    layer = head[-1] if isinstance(head, nn.Sequential) else head
    return weights_of(layer) if not any(weights_of(child) for child in layer.children()) else []
