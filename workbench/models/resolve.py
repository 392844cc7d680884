"""A network by any name: of this library, or a user's own, `package.module:function` or `file.py:function`."""

import importlib
import importlib.util
import sys
from pathlib import Path

from torch import nn

from workbench.errors import WorkbenchError, unknown
from workbench.models.zoo import create_model


def resolve_model(name: str, **arguments) -> nn.Module:
    """The network that `name` stands for, built with `arguments`: those of create_model, or of the user's function.

    A name with a colon is imported, from the working directory first, and called; what it returns must be an nn.Module.
    Raises: WorkbenchError for a file, module or function that is not there, with the nearest name where there is one,
    for a function that does not take the arguments, and for what is no module.
    """
    if name.endswith(".py"):
        raise WorkbenchError(f"`{name}` names a file: say which function of it builds the network, {name}:function.")
    if ":" not in name:
        return create_model(name, **arguments)
    where, _, function = name.rpartition(":")
    module = _imported(where)
    build = getattr(module, function, None)
    if isinstance(build, nn.Module) and not arguments:
        return build
    if not callable(build):
        callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"function of {where}", function, callables)
    try:
        model = build(**arguments)
    except TypeError as error:
        raise WorkbenchError(f"{name} cannot be called with {arguments or 'no arguments'} ({error}).") from error
    except Exception as error:  # whatever a user's function does
        raise WorkbenchError(f"{name} broke off ({type(error).__name__}: {error}).") from error
    if not isinstance(model, nn.Module):
        raise WorkbenchError(f"{name} must return an nn.Module, not {type(model).__name__}.")
    return model


def _imported(where: str):
    try:
        if where.endswith(".py"):
            return _from_file(Path(where).expanduser())
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(where)
    except WorkbenchError:
        raise
    except Exception as error:  # whatever a user's file does when it is read
        raise WorkbenchError(f"cannot import {where} ({type(error).__name__}: {error}).") from error


def _from_file(file: Path):
    if not file.is_file():
        raise WorkbenchError(f"there is no file {file}: give package.module:function or file.py:function.")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(file.stem, module)
    spec.loader.exec_module(module)
    return module
