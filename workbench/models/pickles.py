"""Reads the released weight files, which are pickles, without executing anything that they contain.

A pickle is a program: it names functions and calls them. Only the few names that a dict of arrays needs are admitted,
each by its exact name, and each stands for a function of this file, never for the one it names; so `_create_array`,
which calls whatever it is handed, hands nothing on. Arrays of objects are refused.
"""

import math
import pickle
import re
from pathlib import Path

import numpy as np

from workbench.errors import WorkbenchError

Tree = dict[str, dict[str, np.ndarray]]

_CORRUPT = (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError,
            OverflowError, MemoryError, RecursionError, UnicodeError)  # fmt: skip


def read_pickle(file: Path) -> Tree:
    """The nested dict of arrays in a released file: {module: {name: array}}.

    Raises: WorkbenchError for a file that asks for anything else, naming it, and for one that is damaged.
    """
    try:
        with open(file, "rb") as stream:
            tree = _Reader(stream, file).load()
        return _plain(tree, file)
    except WorkbenchError:
        raise
    except OSError as error:
        raise WorkbenchError(f"cannot read {file} ({error.strerror}).") from error
    except _CORRUPT as error:
        raise WorkbenchError(
            f"{file} is no released file of weights, or is damaged ({error}): fetch it again."
        ) from error


def _plain(node, file: Path):
    """Stand-ins into arrays, and nothing but dicts, text keys and arrays."""
    if isinstance(node, dict):
        for key in node:
            if not isinstance(key, str):
                raise WorkbenchError(f"{file} has a key of type {type(key).__name__}: it must be text.")
        return {key: _plain(value, file) for key, value in node.items()}
    if isinstance(node, _Array):
        return node.value
    if isinstance(node, int | float):
        return np.asarray(node)
    raise WorkbenchError(
        f"{file} holds a {type(node).__name__.strip('_')}: a file of weights has only dicts of arrays."
    )


class _Reader(pickle.Unpickler):
    def __init__(self, stream, file: Path):
        super().__init__(stream)
        self.file = file

    def find_class(self, module: str, name: str):
        known = _ADMITTED.get((module.replace("numpy.core", "numpy._core"), name))
        if known is None:
            raise WorkbenchError(
                f"{self.file} asks for {module}.{name}, which no file of weights needs: refused, nothing was executed. "
                "Fetch the file again from where it was released."
            )
        return known

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it refers to objects outside of itself")


class _Dtype:
    """Stands for a numpy dtype of plain numbers."""

    __slots__ = ("dtype",)

    def __init__(self, code: str):
        if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?(f[248]|[iu][1248]|b1)", code):
            raise WorkbenchError(
                f"the file holds an array of dtype {code!r}: only plain numbers are read, never objects."
            )
        self.dtype = np.dtype(code)

    def __setstate__(self, state) -> None:
        _, order, *extra = state
        if any(extra[:3]) or order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("an array with fields")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for a numpy array that is filled by its state."""

    __slots__ = ("value",)

    def __init__(self):
        self.value = None

    def __setstate__(self, state) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _fill(data, dtype, shape, "F" if fortran else "C")


class _Function:
    """Stands for a function that the file names; it can be called and nothing else."""

    __slots__ = ("_run",)

    def __init__(self, run):
        self._run = run

    def __call__(self, *args):
        return self._run(*args)

    def __setstate__(self, state) -> None:
        raise pickle.UnpicklingError("it sets the state of a function")


def _fill(data, dtype, shape, order: str) -> np.ndarray:
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise WorkbenchError("the file holds an array of objects: only plain numbers are read.")
    if not isinstance(shape, tuple) or len(data) != math.prod(shape) * dtype.dtype.itemsize:
        raise pickle.UnpicklingError(f"an array of shape {shape} has {len(data)} bytes")
    array = np.frombuffer(bytes(data), dtype.dtype).reshape(shape, order=order)
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).reshape(shape)


def _reconstruct(kind, shape, code) -> _Array:
    if kind is not _NDARRAY:
        raise pickle.UnpicklingError("an array of another class")
    return _Array()


def _create_array(maker, args, state, attributes=None) -> _Array:
    if maker is not _RECONSTRUCT or attributes:
        raise WorkbenchError(
            "the file hands a function of its own to dill's _create_array: refused, it was not called."
        )
    array = maker(*args)
    array.__setstate__(state)
    return array


def _frombuffer(data, dtype, shape, order) -> _Array:
    array = _Array()
    array.value = _fill(data, dtype, shape, order)
    return array


def _scalar(dtype, data) -> _Array:
    array = _Array()
    array.value = _fill(data, dtype, (), "C")
    return array


def _dtype(code, *_) -> _Dtype:
    return _Dtype(code)


def _encode(text, encoding) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"the encoding {encoding!r}")
    return text.encode("latin1")


_NDARRAY = _Function(lambda *_: _Array())
_RECONSTRUCT = _Function(_reconstruct)
_ADMITTED = {
    ("dill._dill", "_create_array"): _Function(_create_array),
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "scalar"): _Function(_scalar),
    ("numpy._core.numeric", "_frombuffer"): _Function(_frombuffer),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Function(_dtype),
    ("_codecs", "encode"): _Function(_encode),
}
