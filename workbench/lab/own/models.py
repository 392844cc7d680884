"""A user's own network as a model by name: `my_net.py:build`, and `normfree:my_net.py:build` without its BatchNorm.

A training names its network, so that it can be repeated, found again and run by a worker. A network of a user is
entered beside those of the library, in this process, and from then on all that takes a model's name takes it: a
configuration, a search, a recipe. Its code is part of the name: the argument `source`.
"""

import ast
import contextlib
import hashlib
import inspect
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

from workbench.errors import WorkbenchError
from workbench.models import resolve, zoo
from workbench.models.normfree import normfree
from workbench.paths import root
from workbench.training.config import syntax_without_docstrings

NORMFREE = "normfree:"
SIZES = {  # what others call them
    "num_classes": ("num_classes", "classes", "n_classes"),
    "in_channels": ("in_channels", "in_chans", "channels"),
}


class Own:
    """Builds a user's network, as an entry of the zoo builds one of ours."""

    norm = "batch"

    def __init__(self, name: str):
        self.name = name

    def __call__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        depth: tuple = (),
        source: str | None = None,
        image_size: int | None = None,
        arguments: dict | None = None,
    ) -> nn.Module:
        """The network, on the CPU. Args: `arguments` of the user's function, which gets the numbers of classes and
        channels where it has arguments for them; `source`, if given, must be today's (see `source_of`)."""
        now = source_of(self.name)
        if source not in (None, now):
            raise WorkbenchError(
                f"{self.name} has changed: `source` (={source}) is now {now}. Take it out of `model_args` to train "
                "the network as it is."
            )
        sizes = sizes_taken(self.name, num_classes, in_channels)
        with torch.device("cpu"), _importable(self.name):  # for shapes alone it is asked for on "meta"
            model = resolve.resolve_model(absolute(self.name), **sizes, **(arguments or {}))
        for name, value in (("num_classes", num_classes), ("blocks", ())):  # what a training and a file ask of ours
            if not hasattr(model, name):
                setattr(model, name, value)
        return model


class OwnNormFree(Own):
    """Builds the normalizer-free version of a user's network."""

    norm = "none"

    def __call__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        depth: tuple = (),
        source: str | None = None,
        image_size: int | None = None,
        arguments: dict | None = None,
        skip_gain: float = 0.0,
    ) -> nn.Module:
        """As `Own`, then `normfree`, on images of `image_size` pixels a side (None: 64)."""
        model = super().__call__(num_classes, in_channels, source=source, arguments=arguments)
        size = image_size or 64
        with torch.device("cpu"):
            return normfree(model, torch.zeros(2, in_channels, size, size), skip_gain=skip_gain).model


def enter(name: str) -> str:
    """Makes a user's network, and its normalizer-free version, models that configurations may name; returns its name
    as it is entered. A name of the library is only checked.

    Raises: WorkbenchError for an unknown name, a file or function that is not there.
    """
    if ":" not in name:
        zoo.entry(name)
        return name
    own = located(name.removeprefix(NORMFREE))
    source_of(own)
    for entered, kind in ((own, Own), (NORMFREE + own, OwnNormFree)):
        zoo.MODELS[entered] = zoo.Entry(partial(kind(own), depth=()), 32, 32, "whole")
    return NORMFREE + own if name.startswith(NORMFREE) else own


def entered(values: dict) -> dict:
    """Fields of a configuration, its network entered if it is a user's own, with the `source` that it has now."""
    name = values.get("model")
    if not isinstance(name, str) or ":" not in name:
        return values
    name = enter(name)
    arguments = {"source": source_of(name), **(values.get("model_args") or {})}
    return {**values, "model": name, "model_args": arguments}


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


def source_of(name: str) -> str:
    """Names the code of a user's network, 16 hex digits: the syntax trees, without docstrings, of its file and of the
    files that this imports, directly or not, from its own folder or package. Empty for a network of the library.

    Raises: WorkbenchError for what cannot be imported, and for a function that is not there.
    """
    if ":" not in name:
        return ""
    name = located(name.removeprefix(NORMFREE))
    function_of(name)
    return _digest(*_files(name))


def _files(name: str) -> tuple[Path, list[Path]]:
    """The folder that a located network's code is named from, and the files of it, in order."""
    where = absolute(name).rpartition(":")[0]
    file = Path(where if where.endswith(".py") else resolve._imported(where).__file__)
    top = file.parent if where.endswith(".py") else file.parents[where.count(".")]
    return top, sorted(_imported_files(file, top))


def _digest(top: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(top)}\n{syntax_without_docstrings(file.read_text())}\n".encode())
    return digest.hexdigest()[:16]


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


def function_of(name: str):
    """The function that builds a user's network. Raises: WorkbenchError, naming the nearest, where there is none."""
    where, _, function = absolute(name).rpartition(":")
    with _importable(name):
        found = getattr(resolve._imported(where), function, None)
        if not callable(found):
            resolve.resolve_model(absolute(name))  # says what is wrong
    return found


_known: dict[str, str] = {}  # name: the digest of the code that this process has imported for it


@contextlib.contextmanager
def _importable(name: str) -> Iterator[None]:
    """Within it the modules beside a user's file are found, and imported anew where they have changed, or where others
    of their names were imported."""
    top, files = _files(name)
    digest = _digest(top, files)
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


def sizes_taken(name: str, num_classes: int, in_channels: int) -> dict[str, int]:
    """The numbers of classes and channels under the names that the user's function has for them."""
    takes = inspect.signature(function_of(name)).parameters
    wanted = {"num_classes": num_classes, "in_channels": in_channels}
    found = {size: next((word for word in words if word in takes), None) for size, words in SIZES.items()}
    return {word: wanted[size] for size, word in found.items() if word is not None}
