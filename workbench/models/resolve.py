"""A network by any name: of this library, or a user's own, `package.module:function` or `file.py:function`."""

from torch import nn

from workbench.errors import WorkbenchError
from workbench.models.own.networks import call, is_own
from workbench.models.zoo import create_model


def resolve_model(name: str, **arguments) -> nn.Module:
    """The network that `name` stands for, built with `arguments`: those of create_model, or of the user's function.

    A user's own is imported, from the working directory first, and called; what it returns must be an nn.Module.
    Raises: WorkbenchError for a file, module or function that is not there, with the nearest name where there is one,
    for a function that does not take the arguments, and for what is no module.
    """
    if name.endswith(".py"):
        raise WorkbenchError(f"`{name}` names a file: say which function of it builds the network, {name}:function.")
    return call(name, **arguments) if is_own(name) else create_model(name, **arguments)
