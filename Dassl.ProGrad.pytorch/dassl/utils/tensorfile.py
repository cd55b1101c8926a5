"""Safetensors files that say when they are damaged: tensors, facts in JSON, and a checksum of both.

They are device-free: tensors are written from the CPU and come back there, whatever held them.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .errors import UserError, WriteFailed
from .files import atomic_write, check_file

_blake2b = functools.partial(hashlib.blake2b, digest_size=16)


def save_tensors(path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], facts: dict | None = None) -> str:
    """Write {name: tensor} and `facts` (JSON) to `path`, whole or not at all; returns their checksum.
    WriteFailed: the file cannot be written; the old one, if any, is untouched."""
    plain = {name: _plain(tensor) for name, tensor in tensors.items()}
    crc = tensor_checksum(plain, facts)
    about = json.dumps({"crc32": crc, "facts": facts or {}})  # one entry, for the format does not order them
    with atomic_write(path) as file:  # the library itself writes with mode 0600, whatever the umask
        file.write(save(plain, metadata={"about": about}))
    return crc


@contextlib.contextmanager
def opened(path: str | os.PathLike, mode: str) -> Iterator[IO[bytes]]:
    """A file to change in its place, made if it is not there; no link is followed, no pipe waited for. Raises
    WriteFailed."""
    make = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with open(path, mode, opener=lambda name, flags: os.open(name, flags | make, 0o666)) as file:
            yield file
    except OSError as error:
        raise WriteFailed(f'Cannot write "{path}": {error.strerror or error}') from error


def put_rows(path: str | os.PathLike, rows: Mapping[str, torch.Tensor], first: int, count: int, metadata: dict) -> None:
    """Write the header of a safetensors file of {name: (count, ...)}, and {name: (b, ...)} as its rows from `first` on.
    b may be 0; rows that were never written are zero. Raises WriteFailed."""
    entries, places, end = {"__metadata__": metadata}, {}, 0
    for name, value in sorted(rows.items()):
        row = value.element_size() * math.prod(value.shape[1:])
        places[end + first * row] = next(_pieces({name: value}))[1]
        start, end = end, end + count * row
        about = json.loads(save({name: value[:0]})[8:])[name]  # the library's name of the type
        entries[name] = about | {"shape": [count, *value.shape[1:]], "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with opened(path, "r+b") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for place, octets in places.items():
            file.seek(8 + len(text) + place)
            file.write(octets)


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict, str]:
    """A file of `save_tensors` -> ({name: tensor}, facts, checksum); tensors are private maps of the file.
    MissingFile: no such file. UserError: damaged, or written by something else; names the file."""
    tensors, metadata = read_safetensors(path)
    about = _about(path, metadata)
    crc = tensor_checksum(tensors, about["facts"])
    if crc != about["crc32"]:
        raise UserError(f'"{path}" is damaged: its checksum is {crc}, expected {about["crc32"]}')
    return tensors, about["facts"], crc


def read_facts(path: str | os.PathLike) -> dict:
    """The facts of a file of `save_tensors`, from its header alone. Raises as `load_tensors`, but for damage
    behind the header."""
    return _about(path, read_safetensors(path, header_only=True)[1])["facts"]


def read_safetensors(
    path: str | os.PathLike, header_only: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Any safetensors file -> (its tensors, as private maps of the file, or none; its metadata).
    MissingFile: no such file. UserError: damaged, or of another format; names the file."""
    check_file(path)
    try:
        # by its number: the library takes names in UTF-8 alone
        with open(path, "rb") as file, safe_open(f"/dev/fd/{file.fileno()}", framework="pt") as stored:
            names = [] if header_only else stored.keys()
            return {name: stored.get_tensor(name) for name in names}, stored.metadata() or {}
    except (SafetensorError, OSError, ValueError, MemoryError) as error:  # the last: too large to be mapped
        raise UserError(f'"{path}" is damaged or no safetensors file: {error}') from error


def _about(path, metadata):
    try:
        about = json.loads(metadata.get("about", ""))
    except ValueError:
        about = None
    if not isinstance(about, dict) or about.keys() != {"crc32", "facts"}:
        reason = "its header has no facts and checksum of this code"
        raise UserError(f'"{path}" is damaged or was written by something else: {reason}')
    return about


def tensor_checksum(tensors: Mapping[str, torch.Tensor], facts: dict | None = None) -> str:
    """CRC-32, in hexadecimal, of names, types, shapes and bytes, and of `facts` as JSON; 4 GB/s."""
    crc = zlib.crc32(json.dumps(facts, sort_keys=True).encode()) if facts else 0
    for head, octets in _pieces(tensors):
        crc = zlib.crc32(octets, zlib.crc32(head, crc))
    return f"{crc:08x}"


def tensor_digest(tensors: Mapping[str, torch.Tensor], algorithm: Callable = _blake2b) -> str:
    """In hexadecimal, of names, types, shapes and bytes: the same on every device; 1 GB/s."""
    state = algorithm()
    for head, octets in _pieces(tensors):
        state.update(head)
        state.update(octets)
    return state.hexdigest()


def _pieces(tensors):
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        head = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        yield head, tensor.reshape(-1).view(torch.uint8).numpy()


def _plain(tensor):
    """Contiguous, on the CPU, and alone in its memory, as the format's writer wants it."""
    tensor = tensor.detach().cpu().contiguous()
    alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if alone else tensor.clone()
