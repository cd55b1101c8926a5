"""The tensors of a TorchScript archive, without its program.

`torch.jit.load` runs what an archive brings: a module's `__setstate__` may write files or never end. Here its
data.pkl is read with modules that are nothing but their attributes, and its tensors are taken from their records.
"""

import io
import pickle
import zipfile

import torch

from .errors import UserError
from .pickle_scan import scan_pickle
from .restricted import Inert, check_sizes, damaged

_DTYPES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}  # fmt: skip
_DEEPEST = 50  # modules within modules; CLIP's archives have 7


def is_script_archive(path):
    """Whether a file is a zip archive with a program in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[1:2] == ["constants.pkl"] for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def script_tensors(path):
    """{name: tensor} of the modules in an archive, as their state dict names them, on the CPU.

    Raises:
        UserError: damaged, or not what torch.jit.save writes; names the file.
    """
    check_sizes(path)
    try:
        with zipfile.ZipFile(path) as archive:
            program = next(name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"])
            content = archive.read(program)
            scan_pickle(io.BytesIO(content))
            reader = _Reader(io.BytesIO(content))
            reader.archive, reader.root = archive, program.removesuffix("data.pkl")
            found = {}
            _collect(reader.load(), "", found)
    except UserError as error:
        raise UserError(f'"{path}" {error}') from error
    except Exception as error:  # a damaged file can make the readers fail in any way
        raise damaged(path, error) from error
    return found


class _Reader(pickle.Unpickler):
    def find_class(self, module, name):
        if module.startswith("__torch__"):
            return Inert
        if module == "torch" and name in _DTYPES:
            return name
        known = {
            "collections.OrderedDict": dict,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch.jit._pickle.restore_type_tag": _first,
            **{f"torch.jit._pickle.build_{kind}list": _first for kind in ("int", "bool", "double", "tensor")},
        }
        if f"{module}.{name}" not in known:
            raise UserError(f'is refused: it asks for "{module}.{name}", which no weights need')
        return known[f"{module}.{name}"]

    def persistent_load(self, claim):
        _, kind, key, _, count = claim
        content, dtype = self.archive.read(f"{self.root}data/{key}"), _DTYPES[kind]
        if len(content) != count * dtype.itemsize:
            raise UserError(f"is damaged: {len(content)} bytes for {count} values of {dtype} in data/{key}")
        return torch.frombuffer(bytearray(content), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def _tensor(values, offset, shape, stride, *_):
    tensor = values.as_strided(tuple(shape), tuple(stride), offset)  # refuses what is outside
    if tensor.numel() > values.numel():
        raise UserError(f"is refused: {values.numel()} values would become {tensor.numel()}")
    return tensor


def _first(value, *_):
    return value


def _collect(module, prefix, found):
    if prefix.count(".") > _DEEPEST:
        raise UserError(f"is refused: its modules are nested more than {_DEEPEST} deep")
    for name, value in vars(module).items() if isinstance(module, Inert) else ():
        if isinstance(value, torch.Tensor):
            found[f"{prefix}{name}"] = value
        else:
            _collect(value, f"{prefix}{name}.", found)
