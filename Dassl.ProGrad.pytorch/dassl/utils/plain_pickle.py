"""Reads Python pickles without running anything in them; data sets come as such, and so do old checkpoints.

Containers, numbers and strings come back as they are, arrays of bytes as PlainArray, and objects of classes
that the caller names as what the caller gives in their place. Any other global is refused.
"""

import contextlib
import hashlib
import math
import mmap
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .errors import UserError
from .files import check_file
from .tools import sha256_file

MOST = 30_000_000  # members of nested tuples


class PlainArray:
    """What stands in for a NumPy array in a pickle: `array`, uint8 and read-only."""

    __slots__ = ("array",)

    def __init__(self, *_):
        pass

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

    def __init__(self, kind: str, *flags: object) -> None:
        self.kind, self.order = kind, "="

    def __setstate__(self, state):
        self.order = state[1]


def encode(text: str, encoding: str = "latin1") -> bytes:
    """What stands in for `_codecs.encode`, by which Python 3 writes bytes for Python 2."""
    return text.encode("latin1")


# They take memory for a claim, or name things by number
_LEFT_OUT = (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.EXT1, pickle.EXT2, pickle.EXT4)
_TUPLES = (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)


def _counted(load):
    """Tuples of tuples take longer to hash than anybody lives, or more stack than there is: each level counts twice
    what it holds."""

    def load_tuple(reader):
        load(reader)
        made, sizes = reader.stack[-1], reader.sizes
        size = len(made) + 2 * sum(sizes[id(item)][0] for item in made if id(item) in sizes)
        if size > MOST:
            raise ValueError("tuples are nested too deep")
        sizes[id(made)] = size, made  # kept, so that no other gets its number

    return load_tuple


class Unpickler(pickle._Unpickler):
    """Python's own unpickler in Python: that in C gives memory to what a stream only claims.

    file: with read and readline that give what is there, however much is asked for (BytesIO, mmap).
    names: {(module, name): what stands for it}; a file may ask for no other global. what: it holds, for errors.
    """

    stack: list  # Python's own, which its stubs do not have
    dispatch = {code: load for code, load in pickle._Unpickler.dispatch.items() if bytes([code]) not in _LEFT_OUT}
    dispatch |= {code[0]: _counted(pickle._Unpickler.dispatch[code[0]]) for code in _TUPLES}

    def __init__(self, file: Any, path: str, names: dict, what: str, encoding: str = "latin1") -> None:
        super().__init__(file, encoding=encoding)
        self.path, self.names, self.what, self.sizes = path, names, what, {}

    def load(self) -> Any:
        try:
            return super().load()
        finally:  # it refers to itself, and to all that it has read
            vars(self).clear()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise UserError(f'"{self.path}" is refused: it asks for "{module}.{name}", which no {self.what} needs')
        return self.names[module, name]

    def load_build(self) -> None:
        """A file can set attributes of objects, not of what stands for a class or function."""
        if not isinstance(self.stack[-2], tuple(kind for kind in self.names.values() if isinstance(kind, type))):
            raise ValueError(f"sets attributes of a {type(self.stack[-2]).__name__}")
        super().load_build()  # type: ignore[misc]  # its stubs do not have it

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]  # they take the unpickler in C alone


@contextlib.contextmanager
def one_error(path: str | os.PathLike, what: str) -> Iterator[None]:
    """A damaged file can make a reader fail in any way: as UserError that names it. what: it should have been."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f'"{path}" is damaged or no {what}: {reason}') from error


_ARRAYS = {("numpy", "ndarray"): None, ("numpy", "dtype"): PlainDtype, ("_codecs", "encode"): encode} | {
    (f"numpy.{core}.multiarray", "_reconstruct"): PlainArray for core in ("core", "_core")
}


def load_plain_pickle(path: str | os.PathLike, classes: dict[tuple[str, str], Callable] | None = None) -> Any:
    """The object in a pickle; strings of Python 2 are read as latin-1.

    classes: {(module, name): what is called in place of that class}.
    MissingFile: no such file. UserError: damaged, or asking for anything else; names the file.
    """
    path, what = os.fspath(path), "pickle of plain data"
    check_file(path)
    with one_error(path, what), open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
        return Unpickler(content, path, _ARRAYS | (classes or {}), what).load()


def has_sums(archive: zipfile.ZipFile) -> bool:
    """Whether a zip archive has CRC-32s; torch can be told to write none (`set_crc32_options`)."""
    return any(entry.CRC for entry in archive.infolist())


def checkpoint_digest(path: str | os.PathLike) -> str:
    """What a file of weights holds, as 32 hexadecimal digits: of an archive over its records' names, sizes and
    CRC-32s, which takes milliseconds; of any other format, from the SHA-256 of the file.

    MissingFile: no such file. UserError: no plain file, or a damaged archive.
    """
    path = os.fspath(path)
    if zipfile.is_zipfile(path):
        with one_error(path, "checkpoint"), zipfile.ZipFile(path) as archive:
            # without the archive's own name, which is that of the file it was first written to
            records = sorted((e.filename.partition("/")[2], e.file_size, e.CRC) for e in archive.infolist())
            if has_sums(archive):
                return hashlib.sha256(repr(records).encode()).hexdigest()[:32]
    return sha256_file(path)[:32]
