"""A user's code: found by a name that means the same everywhere, imported, and named by what it says.

Names are `file.py:function` or `package.module:function`. What they name is run, so a configuration, recipe or plan
that names one is to be trusted as the code itself is.
"""

import ast
import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from workbench.errors import WorkbenchError, unknown
from workbench.paths import root
from workbench.source import files_hash


def located(name: str) -> str:
    """The same network by a name that means the same from every folder: a file below the root is named from there, any
    other by its whole path. Names without a file stay as they are. Raises: WorkbenchError for a file that is not there.
    """
    where, _, function = name.rpartition(":")
    if not where.endswith(".py"):
        return name
    given = Path(where).expanduser()
    file = next((f.resolve() for f in (given, root() / given) if f.is_file()), None)
    if file is None:
        raise WorkbenchError(f"there is no file {where}, neither in {Path.cwd()} nor in {root()}.")
    return f"{file.relative_to(root()) if file.is_relative_to(root()) else file}:{function}"


def absolute(name: str) -> str:
    """A located name with the file's whole path."""
    where, _, function = name.rpartition(":")
    return f"{root() / where}:{function}" if where.endswith(".py") else name


def function_of(name: str) -> Callable:
    """What a located name names. Raises: WorkbenchError for what cannot be imported, and, naming the nearest, for a
    function that is not there."""
    where, _, function = absolute(name).rpartition(":")
    with importable(name):
        return named_in(imported(where), where, function)


def named_in(module, where: str, function: str) -> Callable:
    """A module's function, or network. Raises: WorkbenchError, naming the nearest, where there is none."""
    found = getattr(module, function, None)
    if not callable(found):
        callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"function of {where}", function, callables)
    return found


def imported(where: str):
    """The module of a file or of a dotted name, which is looked for in the working directory first.

    Raises: WorkbenchError for what is not there, or breaks as it is read.
    """
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


def source_hash_of(name: str) -> str:
    """Names the code of a user's network, 16 hex digits: the syntax trees, without docstrings, of its file and of the
    files that this imports, directly or not, from its own folder or package. Raises: WorkbenchError, as function_of."""
    function_of(name)
    return files_hash(*_files(name))


def _files(name: str) -> tuple[Path, list[Path]]:
    """The folder that a located network's code is named from, and the files of it, in order."""
    where = absolute(name).rpartition(":")[0]
    file = Path(where if where.endswith(".py") else imported(where).__file__)
    top = file.parent if where.endswith(".py") else file.parents[where.count(".")]
    return top, sorted(_imported_files(file, top))


def _imported_files(file: Path, top: Path) -> set[Path]:
    """The file and those under `top` that it imports, directly or not."""
    found, todo = {file}, [file]
    while todo:
        here = todo.pop()
        for node in ast.walk(ast.parse(here.read_text())):
            if isinstance(node, ast.Import):
                names, places = [alias.name for alias in node.names], (here.parent, top)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                names = [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)]
                places = (here.parents[node.level - 1],) if node.level else (here.parent, top)
            else:
                continue
            parts = [place.joinpath(*name.split(".")) for name in names if name for place in places]
            files = {f for part in parts for f in (part.with_suffix(".py"), part / "__init__.py") if f.is_file()}
            todo += files - found
            found |= files
    return found


_known: dict[str, str] = {}  # name: the hash of the code that this process has imported for it


@contextlib.contextmanager
def importable(name: str) -> Iterator[None]:
    """Within it the modules beside a user's file are found, and imported anew where they have changed, or where others
    of their names were imported."""
    top, files = _files(name)
    digest = files_hash(top, files)
    for file in files:
        module = ".".join(file.relative_to(top).with_suffix("").parts).removesuffix(".__init__")
        other = getattr(sys.modules.get(module), "__file__", None)
        if other is not None and (Path(other) != file or _known.get(name, digest) != digest):
            del sys.modules[module]
    _known[name] = digest
    sys.path.insert(0, str(top))
    try:
        yield
    finally:
        sys.path.remove(str(top))
