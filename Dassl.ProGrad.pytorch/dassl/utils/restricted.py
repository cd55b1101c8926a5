"""Reads torch checkpoints of unknown origin without running anything in them.

Old checkpoints hold live scheduler and optimizer objects. Those come back as inert objects that carry the
saved attributes; tensors and plain containers come back as they are; any other global is refused.
"""

import collections
import contextlib
import hashlib
import io
import mmap
import os
import pickle
import re
import tarfile
import types
import warnings
import zipfile

import torch

from .errors import UserError
from .logger import get_logger
from .pickle_scan import scan_pickle
from .plain_pickle import Function, PlainDtype, encode, plain_number
from .tools import STAND_INS, brief, check_file, sha256_file, stand_in

# torch stores its records uncompressed; an archive that grows by more than this on reading is an attack
_MAX_GROWTH = 20
_SMALL = 1 << 24  # bytes of tensors that any file may hold


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

    def __setitem__(self, key, value):
        """What a dictionary of its own kind held is left out."""

    def extend(self, values):
        """As is what a list held."""

    append = extend

    def __repr__(self):
        return f"<inert {self.origin}>"


_PLAIN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("collections", "Counter"): Function(collections.Counter),
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor"): Function(torch._utils._rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Function(torch._utils._rebuild_tensor_v2),
    ("torch._utils", "_rebuild_parameter"): Function(torch._utils._rebuild_parameter),
    ("numpy", "dtype"): PlainDtype,
    ("_codecs", "encode"): Function(encode),
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (dict, set)},
    **{(f"numpy.{core}.multiarray", "scalar"): Function(plain_number) for core in ("core", "_core")},
}
# What training scripts save beside the weights, as inert objects; "torch.optim" stands for all below it too
_BESIDE = re.compile(
    r"torch\.optim(\.\w+)* \w+|torch (device|bool|[bcfiu]\w*\d+)|torch\._C Generator|"
    r"argparse Namespace|types SimpleNamespace|collections deque|datetime \w+|pathlib(\._local)? \w*Path|"
    r"(yacs\.config|easydict|addict\.addict) \w+|"
    r"numpy ndarray|numpy\._?core\.multiarray _reconstruct|(builtins|__builtin__) (complex|frozenset|slice)"
)


# What torch's own safe reader would make of any size that a file names
_GROWING = re.compile(r"(torch|torch\.\w+) \w*Tensor|(builtins|__builtin__) bytearray|by .*")


def _restricted_pickle(path):
    """A stand-in for the pickle module, as `torch.load` takes it, that admits the names above only."""
    inert, most = {}, os.path.getsize(path)

    def checked(load):
        def persistent_load(claim):
            if isinstance(claim, tuple) and any(type(part) is int and not 0 <= part <= most for part in claim):
                raise UserError(
                    f'"{path}" is refused: it has {most} bytes and says it holds the storage {brief(claim)}'
                )
            return load(claim)

        return persistent_load

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) in _PLAIN:
                return _PLAIN[module, name]
            if _BESIDE.fullmatch(f"{module} {name}"):
                origin = f"{module}.{name}"
                return inert.setdefault(origin, type(name, (Inert,), {"origin": origin}))
            raise UserError(f'"{path}" is refused: it asks for "{module}.{name}", which no checkpoint needs')

        def __setattr__(self, name, value):  # torch sets it; storages are given memory by what they claim
            super().__setattr__(name, checked(value) if name == "persistent_load" else value)

    def load(file, **kwargs):
        return Unpickler(file, **kwargs).load()

    module = types.ModuleType("restricted_pickle")
    module.Unpickler, module.load = Unpickler, load
    return module


_OTHER_KINDS = STAND_INS | {  # how what is no weights begins -> what it is
    rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!": "compressed: unpack it first",
    rb"\x89HDF|GGUF|\x93NUMPY|\x89PNG|\xff\xd8\xff|%PDF": "of another format than torch's or safetensors",
    rb"\s*[\[{]\s*[\"\]}\[{]": "a JSON text",
}


def check_kind(path):
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


def check_archive(path):
    """Raise before `torch.load` sees a file that is absent or an archive of another kind -> the globals it asks for.

    Raises:
        MissingFile: no such file.
        UserError: a damaged archive, a tar archive, a program, or one that would fill the memory.
    """
    check_kind(path)
    try:
        if not zipfile.is_zipfile(path):
            if _is_tar(path):
                raise UserError(f'"{path}" is refused: a tar archive is no checkpoint')
            return _scan_old(path)
        check_sizes(path)
        check_records(path)
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if not any(name.endswith("data.pkl") for name in names):
            raise UserError(f'"{path}" is no checkpoint but a zip archive of {brief(names[:3])}')
        reader = torch._C.PyTorchFileReader(path)
        if "constants.pkl" in reader.get_all_records():
            raise UserError(f'"{path}" is a TorchScript program, not a checkpoint')
        # torch's own reader: of entries that have one name, zipfile takes the last and torch another
        return scan_pickle(io.BytesIO(reader.get_record("data.pkl")))
    except UserError:
        raise
    except Exception as error:  # a damaged directory can make the readers fail in any way
        raise damaged(path, error) from error


def _is_tar(path):
    """Whether `torch.load` would take a file for a tar archive. Never unpacks: `tarfile.is_tarfile` reads all of it."""
    try:
        tarfile.open(path, "r:").close()
    except tarfile.TarError:
        return False
    return True


def check_sizes(path):
    """Raise UserError for a zip archive that would fill the memory or has two entries of one name; whatever zipfile
    raises for a damaged one."""
    packed = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f'"{path}" is refused: it has more than one entry {brief(twice)}')
    if unpacked > _MAX_GROWTH * packed:
        raise UserError(f'"{path}" is refused: {packed} bytes would unpack to {unpacked}')


def _sums(archive):
    """Whether a zip archive has CRC-32s; torch can be told to write none (`set_crc32_options`)."""
    return any(entry.CRC for entry in archive.infolist())


def check_records(path):
    """Raise UserError for a zip archive of which a record is not what its CRC-32 says; 4 GB/s."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if not _sums(archive):
            get_logger().info(f"{path} has no checksums: damage in it can go unnoticed")
        elif broken := archive.testzip():
            raise UserError(f'"{path}" is damaged: its record {brief(broken)} is not what its CRC-32 says')


def checkpoint_digest(path):
    """What a file of weights holds, as 32 hexadecimal digits: of an archive over its records' names, sizes and
    CRC-32s, which takes milliseconds; of any other format, from the SHA-256 of the file.

    Raises:
        MissingFile: no such file.
        UserError: no plain file, or a damaged archive.
    """
    path = os.fspath(path)
    check_file(path)
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                # without the archive's own name, which is that of the file it was first written to
                records = sorted((e.filename.partition("/")[2], e.file_size, e.CRC) for e in archive.infolist())
                if _sums(archive):
                    return hashlib.sha256(repr(records).encode()).hexdigest()[:32]
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise damaged(path, error) from error
    return sha256_file(path)[:32]


def _scan_old(path):
    """The globals of the pickles that the older format begins with: magic number, version, system, content, keys."""
    get_logger().info(f"{path} is in torch's older format, which has no checksums: damage in it can go unnoticed")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:4] == b"PK\x03\x04":
            raise ValueError("its end is missing, as after a download or a copy that was interrupted")
        return set().union(*(scan_pickle(content) for _ in range(5)))


def check_tensors(tree, path):
    """Raise UserError for tensors of `tree` that are larger than their file by far, as those of stride 0 can be."""
    most, stack, seen, total = max(_MAX_GROWTH * os.path.getsize(path), _SMALL), [tree], set(), 0
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            total += 0 if value.is_meta or value.layout != torch.strided else value.numel() * value.element_size()
        elif isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, list | tuple | set):
            stack += value
        elif isinstance(value, Inert):
            stack += vars(value).values()
    if total > most:
        raise UserError(f'"{path}" is refused: {os.path.getsize(path)} bytes hold tensors of {total}')


def damaged(path, error):
    """The UserError for a file that a reader failed on."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f'"{path}" is damaged or no checkpoint: {reason}')


def safe_load(path, map_location="cpu"):
    """The object in a checkpoint by torch's own safe reader: tensors, plain containers and nothing that runs.

    Raises:
        MissingFile: no such file.
        UserError: damaged, foreign, or out of proportion.
        Exception: whatever that reader raises for all else.
    """
    path = os.fspath(path)
    names = check_archive(path)
    if not zipfile.is_zipfile(path):
        raise pickle.UnpicklingError("the older format names sizes that this reader believes")
    if odd := sorted(filter(_GROWING.fullmatch, names)):
        raise pickle.UnpicklingError(f"{odd[0]} can be of any size")
    with _quiet():
        found = torch.load(path, map_location=map_location, weights_only=True)
    check_tensors(found, path)
    return found


def restricted_load(path, map_location="cpu"):
    """The object in a checkpoint (zip or older format); objects of `torch.optim` classes come back `Inert`.

    Raises:
        MissingFile: no such file.
        UserError: damaged, foreign, or asking for anything but tensors and plain containers; names the file.
    """
    path = os.fspath(path)
    check_archive(path)
    try:
        with _quiet():
            found = torch.load(
                path, map_location=map_location, pickle_module=_restricted_pickle(path), weights_only=False
            )
        check_tensors(found, path)
        return found
    except UserError:
        raise
    except Exception as error:  # a damaged file can make the reader fail in any way
        raise damaged(path, error) from error


@contextlib.contextmanager
def _quiet():
    """Without warnings of other people's pickle protocols and tensor layouts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
