"""Reads Python pickles of plain data (data sets come as such) without running anything in them.

Containers, numbers and strings come back as they are, arrays of bytes as PlainArray, and objects of classes
that the caller names as what the caller gives in their place. Any other global is refused.
"""

import math
import mmap
import os
import pickle

import numpy as np

from .errors import MissingFile, UserError
from .pickle_scan import scan_pickle


class PlainArray:
    """What stands in for a NumPy array in a pickle: `array`, uint8 and read-only."""

    __slots__ = ("array",)

    def __setstate__(self, state):
        _, shape, dtype, fortran, content = state
        content = content.encode("latin1") if isinstance(content, str) else bytes(content)
        if getattr(dtype, "kind", "") != "u1" or fortran:
            raise ValueError("an array that is not of bytes in C order")
        if math.prod(shape) != len(content):
            raise ValueError(f"an array of shape {shape} with {len(content)} bytes")
        self.array = np.frombuffer(content, dtype=np.uint8).reshape(shape)


class PlainDtype:
    """What stands in for a NumPy dtype in a pickle: `kind`, such as "f8", and the byte order."""

    __slots__ = ("kind", "order")

    def __init__(self, kind, *flags):
        self.kind, self.order = kind, "="

    def __setstate__(self, state):
        self.order = state[1]


def plain_number(dtype, content):
    """The Python number of a NumPy scalar in a pickle; None for one that is no number."""
    content = content.encode("latin1") if isinstance(content, str) else content
    is_number = dtype.kind[:1] in ("f", "i", "u", "b") and dtype.order in ("<", ">", "=", "|")
    return np.frombuffer(content, np.dtype(f"{dtype.order}{dtype.kind}"), count=1)[0].item() if is_number else None


class Function:
    """A function that the file can call but not reach into."""

    __slots__ = ("_call",)

    def __init__(self, call):
        object.__setattr__(self, "_call", call)

    def __setattr__(self, name, value):
        raise AttributeError(name)

    def __call__(self, *args):
        return self._call(*args)


def encode(text, encoding="latin1"):
    return text.encode("latin1")  # how Python 3 writes bytes for Python 2


_ARRAYS = {("numpy", "ndarray"): None, ("numpy", "dtype"): PlainDtype, ("_codecs", "encode"): Function(encode)} | {
    (f"numpy.{core}.multiarray", "_reconstruct"): Function(lambda *args: PlainArray()) for core in ("core", "_core")
}


def load_plain_pickle(path, classes=None):
    """The object in a pickle; strings of Python 2 are read as latin-1.

    classes: {(module, name): what is called in place of that class}.

    Raises:
        MissingFile: no such file.
        UserError: damaged, or asking for anything else; names the file.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise MissingFile(f'File is not found at "{path}"')
    allowed = _ARRAYS | (classes or {})

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) not in allowed:
                raise UserError(f'"{path}" is refused: it asks for "{module}.{name}", which plain data does not need')
            return allowed[module, name]

    try:
        with open(path, "rb") as file:
            if os.path.getsize(path):  # an empty one cannot be mapped; the unpickler says that it ends too soon
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    scan_pickle(content)
            return Unpickler(file, encoding="latin1").load()
    except UserError:
        raise
    except Exception as error:  # a damaged file can make the reader fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f'"{path}" is damaged or no pickle of plain data: {reason}') from error
