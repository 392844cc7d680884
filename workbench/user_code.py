"""A user's code: a name that means the same everywhere, a hash of what it says, and the function it names.

Names are `file.py:function` or `package.module:function`. Whoever builds the network runs the code, so a
configuration, recipe or plan that names one deserves the same trust as the code itself.
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


def is_user_code(name: str) -> bool:
    """Whether a name stands for a user's function, and not for something of this library."""
    return ":" in name


def check_form(name: str) -> None:
    """Refuse a name that is neither `file.py:function` nor `package.module:function`. Reads no file.

    Raises:
        WorkbenchError: If the file, the module or the function is missing in the name.
    """
    where, _, function = name.rpartition(":")
    if name.endswith(".py"):
        raise WorkbenchError(f"`{name}` names a file: say which function of it builds the network, {name}:function.")
    dotted = where.removesuffix(".py") if where.endswith(".py") else where
    if not function.isidentifier() or not dotted:
        raise WorkbenchError(f"`{name}` must have the form file.py:function or package.module:function.")


def located(name: str) -> str:
    """The same function by a name that means the same from every folder.

    A file below the root is named from there, any other file by its whole path. Names of modules stay as they are.

    Raises:
        WorkbenchError: If there is no such file.
    """
    where, _, function = name.rpartition(":")
    if not where.endswith(".py"):
        return name
    given = Path(where).expanduser()
    file = next((f.resolve() for f in (given, root() / given) if f.is_file()), None)
    if file is None:
        raise WorkbenchError(f"there is no file {where}, neither in {Path.cwd()} nor in {root()}.")
    return f"{file.relative_to(root()) if file.is_relative_to(root()) else file}:{function}"


def source_hash_of(name: str) -> str:
    """Name the code behind a located name, 16 hex digits. Reads files and runs none of them.

    Covers the syntax trees, without docstrings, of its file and of the files that this one imports, directly or
    not, from its own folder or package.

    Raises:
        WorkbenchError: If a file or module is missing, or is not Python.
    """
    return files_hash(*_files(name))


_known: dict[str, str] = {}  # name: the hash of the code that this process has imported for it


@contextlib.contextmanager
def loaded(name: str) -> Iterator[Callable]:
    """Run the code behind a located name once and hand out the function, or the network, that it names.

    Within the context the modules next to a user's file can be imported. Modules that have changed, or that hide
    others of the same name, are imported again.

    Raises:
        WorkbenchError: If the code is missing or breaks, and, with the nearest name, if the function is missing.
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
    sys.path.insert(0, str(top))
    try:
        module = _imported(where)
        value = getattr(module, function, None)
        if not callable(value):
            callables = [key for key, each in vars(module).items() if callable(each) and not key.startswith("_")]
            raise unknown(f"function of {where}", function, callables)
        yield value
    finally:
        sys.path.remove(str(top))


def _imported(where: str):
    """The module of a file, run afresh, or of a dotted name."""
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        file = root() / Path(where).expanduser()
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(file.stem, module)
        spec.loader.exec_module(module)
        return module
    except Exception as error:  # whatever a user's file does when it runs
        raise WorkbenchError(f"cannot import {where} ({type(error).__name__}: {error}).") from error


def _files(name: str) -> tuple[Path, list[Path]]:
    """The folder from which a located name's code is named, and the files of it, in order."""
    where = name.rpartition(":")[0]
    file = root() / Path(where).expanduser() if where.endswith(".py") else _file_of_module(where)
    if not file.is_file():
        raise WorkbenchError(f"there is no file {file}: give package.module:function or file.py:function.")
    top = file.parent if where.endswith(".py") else file.parents[where.count(".") + (file.name == "__init__.py")]
    try:
        return top, sorted(_with_imports(file, top))
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        raise WorkbenchError(f"cannot import {where} ({type(error).__name__}: {error}).") from error


def _file_of_module(where: str) -> Path:
    """The file of a dotted module, looked for in the working directory first. The module itself does not run."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        spec = importlib.util.find_spec(where)
        if spec is None or not spec.has_location:
            raise ModuleNotFoundError(f"No module named '{where}'")
    except Exception as error:  # a parent package runs to find its parts
        raise WorkbenchError(f"cannot import {where} ({type(error).__name__}: {error}).") from error
    return Path(spec.origin)


def _with_imports(file: Path, top: Path) -> set[Path]:
    """The file and those under `top` that it imports, directly or not."""
    files, todo = {file}, [file]
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
            more = {f for part in parts for f in (part.with_suffix(".py"), part / "__init__.py") if f.is_file()}
            todo += more - files
            files |= more
    return files
