"""Reads torch checkpoints of unknown origin without running anything in them.

Old checkpoints hold live scheduler and optimizer objects. Those come back as inert objects that carry the
saved attributes; tensors and plain containers come back as they are; any other global is refused.
"""

import collections
import os
import pickle
import tarfile
import types
import warnings
import zipfile

import torch

from .errors import MissingFile, UserError

# torch stores its records uncompressed; an archive that grows by more than this on reading is an attack
_MAX_GROWTH = 20


class Inert:
    """What is left of an object whose class may not be loaded: `origin` (its class) and its attributes."""

    origin = ""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.__dict__.update(state)

    def __repr__(self):
        return f"<inert {self.origin}>"


class _Callable:
    """Hides a function or Python class from the file, which could otherwise set attributes on it."""

    __slots__ = ("_call",)

    def __init__(self, target):
        object.__setattr__(self, "_call", target)

    def __setattr__(self, name, value):
        raise AttributeError(name)

    def __call__(self, *args):
        return self._call(*args)


_PLAIN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("collections", "Counter"): _Callable(collections.Counter),
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor"): _Callable(torch._utils._rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(torch._utils._rebuild_tensor_v2),
    ("torch._utils", "_rebuild_parameter"): _Callable(torch._utils._rebuild_parameter),
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (dict, set)},
}


def _restricted_pickle(path):
    """A stand-in for the pickle module, as `torch.load` takes it, that admits the names above only."""
    inert = {}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) in _PLAIN:
                return _PLAIN[module, name]
            if module == "torch.optim" or module.startswith("torch.optim."):
                origin = f"{module}.{name}"
                return inert.setdefault(origin, type(name, (Inert,), {"origin": origin}))
            raise UserError(f'"{path}" is refused: it asks for "{module}.{name}", which no checkpoint needs')

    def load(file, **kwargs):
        return Unpickler(file, **kwargs).load()

    module = types.ModuleType("restricted_pickle")
    module.Unpickler, module.load = Unpickler, load
    return module


def check_archive(path):
    """Raise before `torch.load` sees a file that is absent or an archive of another kind.

    Raises:
        MissingFile: no such file.
        UserError: a damaged archive, a tar archive, a program, or one that would fill the memory.
    """
    if not os.path.isfile(path):
        raise MissingFile(f'File is not found at "{path}"')
    if not zipfile.is_zipfile(path):
        if tarfile.is_tarfile(path):
            raise UserError(f'"{path}" is refused: a tar archive is no checkpoint')
        return
    packed = os.path.getsize(path)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > _MAX_GROWTH * packed:
            raise UserError(f'"{path}" is refused: {packed} bytes would unpack to {unpacked}')
        if "constants.pkl" in torch._C.PyTorchFileReader(path).get_all_records():
            raise UserError(f'"{path}" is a TorchScript program, not a checkpoint')
    except UserError:
        raise
    except Exception as error:  # a damaged directory can make the readers fail in any way
        raise _damaged(path, error) from error


def _damaged(path, error):
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f'"{path}" is damaged or no checkpoint: {reason}')


def restricted_load(path, map_location="cpu"):
    """The object in a checkpoint (zip or older format); objects of `torch.optim` classes come back `Inert`.

    Raises:
        MissingFile: no such file.
        UserError: damaged, foreign, or asking for anything but tensors and plain containers; names the file.
    """
    path = os.fspath(path)
    check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(
                path, map_location=map_location, pickle_module=_restricted_pickle(path), weights_only=False
            )
    except UserError:
        raise
    except Exception as error:  # a damaged file can make the reader fail in any way
        raise _damaged(path, error) from error
