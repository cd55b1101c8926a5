"""Reads torch checkpoints and TorchScript archives of unknown origin without running anything in them.

Old checkpoints hold live scheduler and optimizer objects. Those come back as inert objects that carry the
saved attributes; tensors and plain containers come back as they are; any other global is refused. (torch's own
safe reader knows neither stand-ins for dictionaries and queues nor pickles of later protocols, and no checksums.)
"""

import collections
import io
import mmap
import os
import re
import zipfile
from typing import Any

import numpy as np
import torch

from .errors import UserError, brief
from .files import STAND_INS, check_file, stand_in
from .logger import get_logger
from .plain_pickle import PlainDtype, Unpickler, encode, has_sums, one_error

# torch stores its records uncompressed; an archive that grows by more than this on reading is an attack
_MAX_GROWTH = 20
_SMALL = 1 << 24  # bytes of tensors that any file may hold
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # how torch's older format begins
_MOST_MODULES, _LONGEST_NAME = 100_000, 1000  # of a TorchScript archive; CLIP's have hundreds, and 70 characters


class Inert:
    """What is left of an object whose class may not be loaded: `origin` (its class) and its attributes."""

    origin = ""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.__dict__.update(state)

    def __setitem__(self, key, value):
        """What a dictionary of its own kind held is left out."""

    def extend(self, values: object) -> None:
        """As is what a list held."""

    append = extend

    def __repr__(self):
        return f"<inert {self.origin}>"


# What training scripts save beside the weights, as inert objects; "torch.optim" stands for all below it too
_INERT = re.compile(
    r"__torch__(\.\w+)* \w+|torch\.optim(\.\w+)* \w+|torch (device|per_\w+)|torch\._C Generator|"
    r"torch\.serialization _get_layout|"
    r"argparse Namespace|types SimpleNamespace|collections deque|datetime \w+|pathlib(\._local)? \w*Path|"
    r"(yacs\.config|easydict|addict\.addict) \w+|"
    r"numpy ndarray|numpy\._?core\.multiarray _reconstruct|(builtins|__builtin__) (complex|frozenset|slice)"
)
_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    "QInt8": torch.int8, "QUInt8": torch.uint8, "QInt32": torch.int32, "Untyped": torch.uint8,
}  # fmt: skip


def _plain_number(dtype, content):
    """The Python number of a NumPy scalar in a pickle; None for one that is no number."""
    content = content.encode("latin1") if isinstance(content, str) else content
    is_number = dtype.kind[:1] in ("f", "i", "u", "b") and dtype.order in ("<", ">", "=", "|")
    return np.frombuffer(content, np.dtype(f"{dtype.order}{dtype.kind}"), count=1)[0].item() if is_number else None


def _first(value, *_):
    return value


def _no_plain_tensor(*_):
    """In place of one that is sparse, quantized, without numbers, ...: it has a name, and nobody can use it."""
    return torch.empty(0, device="meta")


class _Reader(Unpickler):
    """storage: (key, dtype, count of values) -> tensor (count,) of a storage that the pickle names. most: bytes of
    tensors that it may make, for those of stride 0 can be of any size."""

    def __init__(self, file, path, storage=None, most=0):
        names = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("collections", "defaultdict"): collections.defaultdict,
            ("collections", "Counter"): collections.Counter,
            ("torch", "Size"): torch.Size,
            ("torch", "Tensor"): None,  # not called, but named beside what rebuilds one with attributes
            ("torch._tensor", "_rebuild_from_type_v2"): lambda rebuild, kind, args, state: rebuild(*args),
            ("numpy", "dtype"): PlainDtype,
            ("_codecs", "encode"): encode,
            **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (dict, set)},
            **{(f"numpy.{core}.multiarray", "scalar"): _plain_number for core in ("core", "_core")},
            **{(module, f"{name}Storage"): dtype for module in ("torch", "torch.storage")
               for name, dtype in _STORAGES.items()},
            **{("torch._utils", f"_rebuild_tensor{version}"): self.tensor for version in ("", "_v2", "_v3")},
            **{("torch._utils", f"_rebuild_parameter{more}"): self.parameter for more in ("", "_with_state")},
            **{("torch.jit._pickle", f"build_{kind}list"): _first for kind in ("int", "bool", "double", "tensor")},
            ("torch.jit._pickle", "restore_type_tag"): _first,
        }  # fmt: skip
        super().__init__(file, path, names, "checkpoint", encoding="utf-8")
        self.storage, self.most, self.total = storage, most, 0

    def find_class(self, module, name):
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module == "torch._utils" and name.startswith("_rebuild_"):
            return self.names.get((module, name), _no_plain_tensor)
        if (module, name) not in self.names and _INERT.fullmatch(f"{module} {name}"):
            self.names[module, name] = type(name, (Inert,), {"origin": f"{module}.{name}"})
        return super().find_class(module, name)

    def persistent_load(self, claim):
        kind, dtype, key, _, count, *view = claim
        if kind != "storage" or count < 0 or any(view):  # which the earliest torch had: a part of a storage
            raise ValueError(f"names {brief(claim)} where a storage is expected")
        return self.storage(key, dtype, count)

    def tensor(self, values, offset, shape, stride, grad=False, hooks=None, dtype=None, metadata=None):
        values = values if dtype is None else values.view(dtype)
        tensor = values.as_strided(tuple(shape), tuple(stride), offset)  # refuses what is outside
        self.total += tensor.numel() * tensor.element_size()
        if self.total > self.most:
            raise UserError(
                f'"{self.path}" is refused: {os.path.getsize(self.path)} bytes hold tensors of {self.total}'
            )
        return tensor.requires_grad_(grad)

    def parameter(self, data, grad, hooks, state=None):
        return torch.nn.Parameter(data.detach(), grad)


_OTHER_KINDS = STAND_INS | {  # how what is no weights begins -> what it is
    rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!": "compressed: unpack it first",
    rb"\x89HDF|GGUF|\x93NUMPY|\x89PNG|\xff\xd8\xff|%PDF": "of another format than torch's or safetensors",
    rb"\s*[\[{]\s*[\"\]}\[{]": "a JSON text",
    rb"(?s:.{257})ustar": "a tar archive",
}


def check_kind(path: str | os.PathLike) -> None:
    """Raise MissingFile where there is no file, UserError for one that plainly holds no weights or another format's
    than its name says."""
    if os.path.isdir(path):
        raise UserError(f'"{path}" is a folder, expected a file of weights')
    check_file(path)
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        raise UserError(f'"{path}" is damaged or no checkpoint: it is empty')
    named = str(path).endswith(".safetensors")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < os.path.getsize(path):
        if not named:
            raise UserError(f'"{path}" is a safetensors file under another name: let its name end in .safetensors')
        return
    if kind := stand_in(head, _OTHER_KINDS):
        raise UserError(f'"{path}" is no checkpoint but {kind}')
    if named and (head[:2] in (b"PK", b"\x80\x02") or zipfile.is_zipfile(path)):
        raise UserError(f'"{path}" is a torch file under the name of safetensors: let its name end in .pth')


class _Archive(zipfile.ZipFile):
    """A zip archive of torch's; each record is held against its CRC-32 when it is read.

    Raises UserError for one that would fill the memory or has two entries of one name; whatever zipfile raises for a
    damaged one.
    """

    def __init__(self, path):
        super().__init__(path)
        self.path, self.octets, entries, packed = path, {}, self.infolist(), os.path.getsize(path)
        names = self.namelist()
        if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
            raise UserError(f'"{path}" is refused: it has more than one entry {brief(twice[0])}')
        if (unpacked := sum(entry.file_size for entry in entries)) > _MAX_GROWTH * packed:
            raise UserError(f'"{path}" is refused: {packed} bytes would unpack to {unpacked}')
        program = next((name for name in names if name.split("/")[1:] == ["data.pkl"]), None)
        if program is None:
            raise UserError(f'"{path}" is no checkpoint but a zip archive of {brief(names[:3])}')
        self.root = program.removesuffix("data.pkl")
        self.is_script = f"{self.root}constants.pkl" in names
        if not has_sums(self):
            get_logger().info(f"{path} has no checksums: damage in it can go unnoticed")
            for entry in entries:
                entry.CRC = None

    def load(self):
        """The object in it."""
        if f"{self.root}byteorder" in self.namelist() and self.read(f"{self.root}byteorder") != b"little":
            raise UserError(f'"{self.path}" is refused: its numbers are big-endian')
        most = max(_MAX_GROWTH * os.path.getsize(self.path), _SMALL)
        return _Reader(io.BytesIO(self.read(f"{self.root}data.pkl")), self.path, self._storage, most).load()

    def _storage(self, key, dtype, count):
        if key not in self.octets:
            entry = self.getinfo(f"{self.root}data/{key}")
            self.octets[key] = torch.empty(entry.file_size, dtype=torch.uint8)
            memoryview(self.octets[key].numpy())[:] = self.read(entry)
        octets = self.octets[key]
        if len(octets) != count * dtype.itemsize:
            raise ValueError(f"{len(octets)} bytes for {count} values of {dtype} in data/{key}")
        return octets.view(dtype)


def check_records(path: str | os.PathLike) -> None:
    """Raise UserError for a zip archive of which a record is not what its CRC-32 says; 4 GB/s. For what another
    reader than ours opens."""
    if zipfile.is_zipfile(path):
        with one_error(path, "checkpoint"), _Archive(path) as archive:
            if broken := archive.testzip():
                raise UserError(f'"{path}" is damaged: its record {brief(broken)} is not what its CRC-32 says')


def _load_old(path):
    """torch's older format: magic number, version, the writer's system, content, keys of storages; their values."""
    get_logger().info(f"{path} is in torch's older format, which has no checksums: damage in it can go unnoticed")
    size, storages = os.path.getsize(path), {}

    def storage(key, dtype, count):
        if key not in storages:
            if count * dtype.itemsize + sum(values.nbytes for values in storages.values()) > size:
                raise ValueError(f"it has {size} bytes and says it holds the storage {brief(key)} of {count} values")
            storages[key] = torch.empty(count, dtype=dtype)
        return storages[key]

    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:4] == b"PK\x03\x04":
            raise ValueError("its end is missing, as after a download or a copy that was interrupted")
        if [_Reader(content, path).load() for _ in range(2)] != [_MAGIC, _VERSION]:
            raise ValueError("it does not begin as torch's files do")
        _Reader(content, path).load()
        tree = _Reader(content, path, storage, max(_MAX_GROWTH * size, _SMALL)).load()
        for key in _Reader(content, path).load():
            values = storages[key]
            count = int.from_bytes(content.read(8), "little")
            if count != len(values):
                raise ValueError(f"storage {brief(key)} of {len(values)} values has {count}")
            memoryview(values.view(torch.uint8).numpy())[:] = content.read(values.nbytes)
    return tree


def _script_tensors(module, path):
    """{name: tensor} of the modules in a TorchScript archive, as their state dict names them.

    `torch.jit.load` runs what an archive brings: a module's `__setstate__` may write files or never end. Here modules
    are nothing but their attributes.
    """
    tensors, modules, count = {}, [("", module)], 0
    while modules:
        (prefix, module), count = modules.pop(), count + 1
        if count > _MOST_MODULES or len(prefix) > _LONGEST_NAME:
            raise UserError(f'"{path}" is refused: it has more than {_MOST_MODULES} modules, or modules without end')
        attributes = {f"{prefix}{name}": value for name, value in vars(module).items()}
        tensors |= {name: value for name, value in attributes.items() if isinstance(value, torch.Tensor)}
        modules += [(f"{name}.", value) for name, value in attributes.items() if isinstance(value, Inert)]
    return tensors


def restricted_load(path: str | os.PathLike, scripts: bool = False) -> Any:
    """The object in a checkpoint (zip or older format), its tensors on the CPU; objects of `torch.optim` classes and
    the like come back `Inert`. scripts: of a TorchScript archive, too, the {name: tensor} of its modules.

    MissingFile: no such file. UserError: damaged, foreign, or asking for anything but tensors and plain containers;
    names the file.
    """
    path = os.fspath(path)
    check_kind(path)
    with one_error(path, "checkpoint"):
        if not zipfile.is_zipfile(path):
            return _load_old(path)
        with _Archive(path) as archive:
            if not archive.is_script:
                return archive.load()
            if not scripts:
                raise UserError(f'"{path}" is a TorchScript program, not a checkpoint')
            return _script_tensors(archive.load(), path)
