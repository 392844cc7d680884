"""User code: names that work from every folder, hashes, and loading of functions.

Names are `file.py:function` or `package.module:function`. Building a network runs the named code. So trust a
configuration, recipe or plan only as much as the code that it names.
"""

import ast
import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from workbench.errors import WorkbenchError, shown, unknown
from workbench.paths import root
from workbench.source import files_hash
from workbench.user_errors import explained, parsed, remember


def is_user_code(name: str) -> bool:
    """Return whether a name stands for a user's function, and not for a network of this library."""
    return ":" in name


def check_form(name: str) -> None:
    """Check that a name has the form `file.py:function` or `package.module:function`.

    This reads no file.

    Raises:
        WorkbenchError: If the name lacks the file, the module or the function.
    """
    where, _, function = name.rpartition(":")
    given = shown(name, 100, quote=False)
    if name.endswith(".py"):
        raise WorkbenchError(
            f"`{given}` names a file without a function. Give the function that builds the network: {given}:function."
        )
    dotted = where.removesuffix(".py") if where.endswith(".py") else where
    if not function.isidentifier() or not dotted:
        raise WorkbenchError(f"`{given}` must have the form file.py:function or package.module:function.")


def located(name: str) -> str:
    """Return a name of the same function that works from every folder.

    A file below the root gets its path from the root, and any other file its absolute path. Names of modules stay as
    they are.

    Raises:
        WorkbenchError: If the file does not exist.
    """
    where, _, function = name.rpartition(":")
    if not where.endswith(".py"):
        return name
    try:
        path = Path(where).expanduser()
        file = next((f.resolve() for f in (path, root() / path) if f.is_file()), None)
    except (OSError, RuntimeError, ValueError) as error:  # a name that no file can have, or an unknown home folder
        raise WorkbenchError(f"no file can be named {where[:80]!r} ({error}). Check the path.") from error
    if file is None:
        given = shown(where, 200, quote=False)
        raise WorkbenchError(f"there is no file {given} in {Path.cwd()} or in {root()}. Check the path.")
    return f"{file.relative_to(root()) if file.is_relative_to(root()) else file}:{function}"


def source_hash_of(name: str) -> str:
    """Hash the code behind a located name. Run none of it.

    The hash covers the syntax trees, without docstrings, of the named file and of its imports. Imports count, direct
    or indirect, if they come from the same folder or package.

    Args:
        name: A name from `located`.

    Returns:
        16 hex digits.

    Raises:
        WorkbenchError: If a file or module is missing, or is not Python.
    """
    return files_hash(*_files(name))


_known: dict[str, str] = {}  # by name the hash of the code that this process imported


@contextlib.contextmanager
def loaded(name: str) -> Iterator[Callable]:
    """Run the code behind a located name once and provide the named function or network.

    Within the context, the modules next to a user's file can be imported. Modules that changed, or that hide others
    of the same name, are imported again.

    Args:
        name: A name from `located`.

    Yields:
        The function, or a network that the module holds.

    Raises:
        WorkbenchError: If the code is missing or fails, or the function is missing. In the last case the message
            suggests the nearest name.
    """
    where, _, function = name.rpartition(":")
    top, files = _files(name)
    digest = files_hash(top, files)
    for file in files:
        module = ".".join(file.relative_to(top).with_suffix("").parts).removesuffix(".__init__")
        imported = getattr(sys.modules.get(module), "__file__", None)
        if imported is not None and (Path(imported) != file or _known.get(name, digest) != digest):
            del sys.modules[module]
    _known[name] = digest
    remember(files)
    sys.path.insert(0, str(top))
    try:
        with explained(f"cannot import {shown(where, quote=False)}", files):
            module = _imported(where)
            value = getattr(module, function, None)
        if not callable(value):
            callables = [key for key, each in vars(module).items() if callable(each) and not key.startswith("_")]
            raise unknown(f"function of {where}", function, callables)
        yield value
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have removed it
            sys.path.remove(str(top))


@contextlib.contextmanager
def running(name: str, what: str) -> Iterator[None]:
    """Run the function of a located name, and turn whatever it raises into one sentence.

    Args:
        name: A name from `located`.
        what: Start of the sentence.

    Raises:
        WorkbenchError: If the function fails. The message has the file and the line.
    """
    with explained(what, _files(name)[1]):
        yield


def _imported(where: str):
    """Import a dotted name, or run a file and return its module."""
    if not where.endswith(".py"):
        return importlib.import_module(where)
    file = root() / Path(where).expanduser()
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.setdefault(file.stem, module)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if before is module:  # no other file may import a module that is only half there
            sys.modules.pop(file.stem, None)
        raise
    return module


def _files(name: str) -> tuple[Path, list[Path]]:
    """Return the top folder of a located name's code and the sorted files of the code."""
    where = name.rpartition(":")[0]
    file = root() / Path(where).expanduser() if where.endswith(".py") else _file_of_module(where)
    if not file.is_file():
        raise WorkbenchError(f"there is no file {file}. Give file.py:function or package.module:function.")
    top = file.parent if where.endswith(".py") else file.parents[where.count(".") + (file.name == "__init__.py")]
    return top, sorted(_with_imports(file, top))


def _file_of_module(where: str) -> Path:
    """Find the file of a dotted module, first in the working directory. Do not run the module."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    with explained(f"cannot import {shown(where, quote=False)}", ()):  # this runs the parent packages
        spec = importlib.util.find_spec(where)
        if spec is None or not spec.has_location:
            raise ModuleNotFoundError(f"No module named '{where}'")
    return Path(spec.origin)


def _with_imports(file: Path, top: Path) -> set[Path]:
    """Return the file and all files that it imports, directly or not, from its folder or `top`.

    A relative import from above `top` adds no file. Python refuses it.
    """
    files, todo = {file}, [file]
    while todo:
        here = todo.pop()
        for node in ast.walk(parsed(here)):
            if isinstance(node, ast.Import):
                names, places = [alias.name for alias in node.names], (here.parent, top)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                names = [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)]
                places = here.parents[node.level - 1 : node.level] if node.level else (here.parent, top)
            else:
                continue
            inside = [place for place in places if place.is_relative_to(top)]
            parts = [place.joinpath(*name.split(".")) for name in names if name for place in inside]
            more = {f for part in parts for f in (part.with_suffix(".py"), part / "__init__.py") if f.is_file()}
            todo += more - files
            files |= more
    return files
