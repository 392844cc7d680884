"""Reads the released weight files, which are pickles, without executing anything in them.

A pickle is a program: it names functions and calls them. This reader admits only the few names that a dict of arrays
needs. It replaces each of them by a function or class of this module, and never calls the one that the pickle names.
The real `_create_array` of dill calls any function that it gets, but its replacement calls none of the file's. Only the
replacements of arrays and dtypes accept a state. The reader refuses arrays of objects and instructions that no file of
weights needs. It also refuses everything that would let a small file take much time or memory.
"""

import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError, shown

Tree = dict[str, dict[str, np.ndarray]]

DEPTH, RANK, LARGEST = 4, 8, 2**31  # limits: nested dicts, dimensions of an array, length of one dimension


def read_pickle(file: Path) -> Tree:
    """Read the nested dict of arrays in a released file: {module: {name: array}}.

    Raises:
        WorkbenchError: If the file is damaged or needs anything else, which the message names.
    """
    try:
        with open(file, "rb") as stream:
            tree = _Reader(stream, file).load()
        if not isinstance(tree, dict):
            raise WorkbenchError(f"{file} holds a {_kind(tree)}, but a file of weights is a dict of dicts of arrays.")
        return _plain(tree, file, 0)
    except WorkbenchError:
        raise
    except OSError as error:
        raise WorkbenchError(f"Cannot read {file} ({error.strerror}).") from error
    except Exception as error:  # a damaged file can raise anything
        cause = shown(str(error), 100, quote=False) or type(error).__name__
        raise WorkbenchError(f"{file} is damaged, or no released file of weights ({cause}). Fetch it again.") from error


def _plain(node, file: Path, depth: int) -> Any:
    """Turn replacements into arrays. Only dicts, arrays and numbers pass."""
    if isinstance(node, dict):
        if depth == DEPTH:
            raise WorkbenchError(f"{file} nests its dicts more than {DEPTH} deep, which no file of weights does.")
        return {key: _plain(value, file, depth + 1) for key, value in node.items()}
    if isinstance(node, _Array) and node.value is not None:
        return node.value
    if isinstance(node, int | float):
        return np.asarray(node)
    raise WorkbenchError(f"{file} holds a {_kind(node)}, but a file of weights has only dicts of arrays.")


def _kind(node) -> str:
    return "array without contents" if isinstance(node, _Array) else type(node).__name__.strip("_").lower()


_NEEDED = """
PROTO FRAME STOP MARK POP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG1 FLOAT BINFLOAT
UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 SHORT_BINSTRING BINSTRING
EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS LIST EMPTY_DICT DICT SETITEM SETITEMS
GLOBAL STACK_GLOBAL REDUCE BUILD MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
""".split()  # noqa: SIM905


_Unpickler: Any = pickle._Unpickler  # typeshed lacks the attributes of the class in Python


class _Reader(_Unpickler):
    """The standard library's unpickler, with only the instructions that dicts of arrays need.

    It is the one in Python, for three reasons:

    - Its instructions are a table that can be cut down.
    - It can look at a key before the key is hashed.
    - Large memo numbers in a file cost nothing. The unpickler in C takes 2 GB for them.
    """

    dispatch = {getattr(pickle, n)[0]: _Unpickler.dispatch[getattr(pickle, n)[0]] for n in _NEEDED}  # noqa: RUF012

    def __init__(self, stream, file: Path):
        super().__init__(stream)
        self.file = file

    def find_class(self, module: str, name: str):
        known = _ADMITTED.get((module.replace("numpy.core", "numpy._core"), name))
        if known is None:
            shown = repr(f"{module}.{name}"[:100])[1:-1]
            raise WorkbenchError(
                f"{self.file} contains {shown}, which no file of weights needs. The file was refused and nothing in it "
                "was executed: fetch it again from where it was released."
            )
        return known

    def load_build(self):
        target = self.stack[-2]
        if not isinstance(target, _Array | _Dtype):
            raise pickle.UnpicklingError(f"it sets the state of a {_kind(target)}")
        super().load_build()

    def load_setitem(self):
        self._text_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self):
        self._text_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self):
        self._text_keys(self.stack[::2])
        super().load_dict()

    def _text_keys(self, keys: list) -> None:
        """Check keys before they are hashed, because the hash of nested tuples can take forever."""
        for key in keys:
            if type(key) is not str:
                raise WorkbenchError(f"{self.file} has a key of type {_kind(key)}, but keys must be text.")

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict


class _Dtype:
    """Replaces a numpy dtype of plain numbers."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, *_):
        if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?(f[248]|[iu][1248]|b1)", code):
            shown = repr(code)[:60]
            raise WorkbenchError(f"The file holds an array of dtype {shown}, but only plain numbers are read.")
        self.dtype = np.dtype(code)

    def __setstate__(self, state) -> None:
        _, order, *extra = state
        if any(part is not None for part in extra[:3]) or order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("an array with fields")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Replaces a numpy array, whose contents come from its state."""

    __slots__ = ("value",)

    def __init__(self):
        self.value = None

    def __setstate__(self, state) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _fill(data, dtype, shape, "F" if fortran else "C")


def _fill(data, dtype, shape, order: str) -> np.ndarray:
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise WorkbenchError("The file holds an array of objects, but only plain numbers are read.")
    sides = shape if isinstance(shape, tuple) and len(shape) <= RANK else (-1,)
    if not all(type(n) is int and 0 <= n < LARGEST for n in sides):
        raise pickle.UnpicklingError("an array without a proper shape")
    if len(data) != math.prod(sides) * dtype.dtype.itemsize:
        raise pickle.UnpicklingError(f"an array of shape {shape} has {len(data)} bytes")
    array = np.frombuffer(data, dtype.dtype).reshape(sides, order=order)  # a view: arrays may share their bytes
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _reconstruct(kind, shape, code) -> _Array:
    if kind is not _Array:
        raise pickle.UnpicklingError("an array of another class")
    return _Array()


def _create_array(maker, args, state, attributes=None) -> _Array:
    if maker is not _reconstruct or attributes:
        raise WorkbenchError("The file passes a function to dill's _create_array. It was refused and not called.")
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


def _encode(text, encoding) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("an encoding that is not latin1")
    return text.encode("latin1")


_ADMITTED = {
    ("dill._dill", "_create_array"): _create_array,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}
