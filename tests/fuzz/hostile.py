"""Files that are made to harm: pickles that would run code or fill the memory, bombs, headers that lie.

CANARY stands in the current folder if a payload ran.
"""

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from functools import cache
from random import Random

import torch

from tests.fuzz.mutate import SIZES, packed_of
from tests.fuzz.oracle import CANARY


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def _calls():
    code = f"open({CANARY!r}, 'w').close()"
    return [
        Call(os.mkdir, CANARY),
        Call(os.system, f"touch {CANARY}"),
        Call(exec, code),
        Call(eval, f"__import__('os').mkdir({CANARY!r})"),
        Call(open, CANARY, "w"),
        Call(torch.load, CANARY),
        Call(torch.save, 1, CANARY),
        Call(getattr, "x", "__class__"),
        Call(bytearray, 1 << 40),
        Call(torch.Tensor, 1 << 20, 1 << 20),
        Call(torch.empty, 1 << 40),
        Call(torch.FloatTensor, 1 << 39),
        Call(range, 1 << 60),
        Call(__import__, "os"),
    ]


def laughs(kind: str, depth: int = 60) -> bytes:
    """A pickle of 2 ** depth leaves in a few hundred bytes; as "key" it is hashed."""
    pair = b"\x86" if kind in ("tuple", "key") else b"l"
    body = b"K\x01q\x00"
    for i in range(depth):
        body += (b"h%c" % i) * 2 + pair if pair == b"\x86" else b"(" + (b"h%c" % i) * 2 + pair
        body += b"q%c0" % (i + 1)  # remember it, drop it
    last = b"h%c" % depth
    return b"\x80\x02" + (b"}" + last + b"K\x01s" if kind == "key" else b"}U\x01a" + last + b"s") + b"."


def pickles() -> list[bytes]:
    """Hostile streams without a container."""
    found = [pickle.dumps({"state_dict": {"ctx": call}}, protocol) for call in _calls() for protocol in (2, 4)]
    found += [laughs(kind) for kind in ("tuple", "list", "key")]
    huge = struct.pack("<Q", 1 << 40)
    found += [
        b"\x80\x04\x8e" + huge + b"x.",  # BINBYTES8 of a terabyte
        b"\x80\x05\x96" + huge + b"x.",  # BYTEARRAY8
        b"\x80\x04\x8d" + huge + b"x.",  # BINUNICODE8
        b"\x80\x04\x95" + huge + b"N.",  # FRAME
        b"\x80\x02B\xff\xff\xff\x7fx.",  # BINBYTES of 2 GiB
        b"\x80\x02X\xff\xff\xff\x7fx.",  # BINUNICODE
        b"\x80\x02\x8b\xff\xff\xff\x7fx.",  # LONG4
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # LONG_BINPUT: a memo of 16 GiB
        b"\x80\x02Nr\xff\xff\xff\x0f.",
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",  # a list 100,000 deep
        b"\x80\x02" + b"N" + b"\x85" * 100_000 + b".",
        b"\x80\x02I" + b"9" * 5000 + b"\n.",
        b"\x80\x02ctorch\n_utils\n.", b"\x80\x02cos\nsystem\n.", b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02\x82\x01.", b"\x80\x02Vx\nQ.", b"\x80\x02K\x01Q.", b"\x80\x02)Q.", b"Pabc\n.", b"\x80\xff.", b".", b"0.",  # noqa: E501
    ]  # fmt: skip
    return found


@cache
def base_archive() -> tuple:
    """(name, content) of the entries of a small torch checkpoint."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {"ctx": torch.ones(4, 6)}, "epoch": 1}, buffer)
    with zipfile.ZipFile(buffer) as packed:
        return tuple((entry.filename, packed.read(entry)) for entry in packed.infolist())


def archive_of(program: bytes, **others: bytes) -> bytes:
    """A torch archive around hand-made pickle bytes."""
    entries = {"data.pkl": program, "version": b"3\n", "byteorder": b"little", "data/0": bytes(96)} | others
    return packed_of([(f"archive/{name}", content) for name, content in entries.items()])


def tensor(numel=4, size=(4,), stride=(1,), storage="FloatStorage", key="0", place="cpu", offset=0) -> bytes:
    """Pickle bytes of a state dict with one tensor of these claims."""

    def text(word):
        return b"X" + struct.pack("<I", len(word)) + word.encode()

    def number(value):
        packed = pickle.encode_long(value)
        return b"\x8a" + bytes([len(packed)]) + packed

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    claim = (
        b"("
        + text("storage")
        + b"ctorch\n"
        + storage.encode()
        + b"\n"
        + text(key)
        + text(place)
        + number(numel)
        + b"tQ"
    )
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + claim + number(offset) + numbers(size) + numbers(stride)
    made += b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text("state_dict") + b"}" + text("ctx") + made + b"ss."


def claims(rng: Random) -> bytes:
    """A tensor that says it is larger than its file."""
    big = rng.choice((10**4, 10**6, 1 << 31, 1 << 40, 1 << 62, -1, 0))
    kind = rng.randrange(5)
    if kind == 0:
        program = tensor(numel=big, size=(big,))
    elif kind == 1:
        program = tensor(size=(big, big), stride=(0, 0))
    elif kind == 2:
        program = tensor(size=(4,), stride=(big,), offset=rng.choice((0, big)))
    elif kind == 3:
        program = tensor(
            storage=rng.choice(("ByteStorage", "DoubleStorage", "UntypedStorage", "QInt8Storage", "Nothing"))
        )
    else:
        program = tensor(key=rng.choice(("1", "../0", "0/../0", "")), place=rng.choice(("cuda:0", "meta", "mps", "x")))
    return archive_of(program)


@cache
def legacy(numel: int) -> bytes:
    """A checkpoint of the older format whose storage says that it has `numel` values."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {"ctx": torch.ones(4)}}, buffer, _use_new_zipfile_serialization=False)
    return (
        buffer.getvalue()
        .replace(b"K\x04Nt", b"\x8a\x08" + struct.pack("<q", numel) + b"Nt")
        .replace(b"cpu" + b"q\x08K\x04", b"cpuq\x08\x8a\x08" + struct.pack("<q", numel))
    )


def checkpoints(rng: Random) -> bytes:
    """A checkpoint that should not be read."""
    kind = rng.randrange(6)
    program = rng.choice(pickles())
    if kind == 0:
        return program
    if kind == 1:
        return archive_of(program)
    if kind == 2:
        return claims(rng)
    if kind == 3:
        return legacy(rng.choice((1 << 31, 1 << 33, 1 << 40, 1 << 62)))
    if kind == 4:
        return zip_bomb()
    name = rng.choice(
        ("constants.pkl", "code/__torch__.py", "data/0", "byteorder", "version", ".data/serialization_id")
    )
    return archive_of(tensor(), **{name: rng.choice((b"", b"x" * 1000, program, b"big"))})


@cache
def zip_bomb(size: int = 300 << 20) -> bytes:
    """An archive whose program unpacks to `size` zeros; made piece by piece, for the harness counts memory."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
        packed.open("archive/data.pkl", "w") as entry,
    ):
        for _ in range(size >> 20):
            entry.write(bytes(1 << 20))
    return buffer.getvalue()


@cache
def gzip_bomb(size: int = 300 << 20) -> bytes:
    """A gzip stream of `size` zeros."""
    state = zlib.compressobj(1, wbits=31)
    return b"".join([*(state.compress(bytes(1 << 20)) for _ in range(size >> 20)), state.flush()])


def lying_safetensors(rng: Random) -> bytes:
    """A safetensors file whose header does not say what is there."""
    shape = rng.choice(([1 << 40], [1 << 31, 1 << 31], [4, 0], [-4], [4], [], [2**64], ["4"], None))
    offsets = rng.choice(([0, 16], [0, 1 << 40], [16, 0], [-16, 0], [0, 15], [8, 24], [0], None, [0, 2**64 - 1]))
    kind = rng.choice(("F32", "F64", "BF16", "U8", "BOOL", "F8_E4M3", "I64", "X", None, ""))
    header = {rng.choice(("w", "", "../w", "é", "w" * 5000)): {"dtype": kind, "shape": shape, "data_offsets": offsets}}
    if rng.random() < 0.5:
        header["__metadata__"] = rng.choice(
            ({"about": "{}"}, {"about": "[" * 10**5}, {"about": "null"}, {"a": 1}, [], "")
        )
    head = json.dumps(header).encode()
    length = rng.choice((len(head), len(head), len(head), *SIZES))
    return struct.pack("<Q", length) + head + bytes(rng.choice((0, 15, 16, 17, 64)))


def png(width: int, height: int, depth: int = 8, kind: int = 2, body: bytes = b"", extra: tuple = ()) -> bytes:
    """A PNG with these claims; `extra` chunks (name, content) before the pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = body or zlib.compress(bytes(1000))
    chunks = [(b"IHDR", head), *extra, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, content) for name, content in chunks)


@cache
def flat_png(side: int) -> bytes:
    """A real image of side x side equal pixels: a decompression bomb."""
    state = zlib.compressobj(9)
    body = b"".join([*(state.compress(bytes(1 + side // 8)) for _ in range(side)), state.flush()])
    return png(side, side, 1, 0, body)


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
(canary) (w) file closefile
%%EOF
"""


def images(rng: Random) -> bytes:
    """An image that should not be decoded, or that is none."""
    side = rng.choice((0, 1, 10_000, 13_000, 20_000, 65_535, 2**31 - 1, 2**32 - 1))
    kind = rng.randrange(9)
    if kind == 0:
        return png(side, rng.choice((1, side)), rng.choice((1, 8, 16)), rng.choice((0, 2, 3, 4, 6)))
    if kind == 1:
        return flat_png(rng.choice((9000, 13_000, 20_000)))
    if kind == 2:
        return png(8, 8, extra=((rng.choice((b"zTXt", b"iCCP", b"iTXt")), b"x\0\0" + gzip_bomb()),))
    if kind == 3:
        return (
            b"BM"
            + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, side % 2**31, -(side % 2**31), 1, 24, 0, 0, 0, 0, 0, 0)
            + bytes(99)
        )  # noqa: E501
    if kind == 4:
        return b"P6 %d %d 255\n" % (side, side) + bytes(100)
    if kind == 5:
        return b"GIF89a" + struct.pack("<HHBBB", side & 0xFFFF, side & 0xFFFF, 0, 0, 0) + b",\0\0\0\0" + struct.pack(
            "<HHB", side & 0xFFFF, side & 0xFFFF, 0) + b"\x08\x02\x00\x01\0;"  # fmt: skip
    if kind == 6:
        return (
            b"RIFF"
            + struct.pack("<I", 30)
            + b"WEBPVP8 "
            + struct.pack("<I", 18)
            + b"\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f"
            + bytes(9)
        )  # noqa: E501
    if kind == 7:
        return EPS
    return rng.choice(
        (b"", b"<html>404</html>", b"\x89PNG", b"\xff\xd8\xff", b"%PDF-1.4", gzip.compress(b"x"), b"II*\0", b"8BPS")
    )


@cache
def scripts() -> list[bytes]:
    """TorchScript archives that write a file, print, or never end when they are loaded."""
    from tests.fuzz.scripts import MODULES

    found = []
    for kind in MODULES:
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(kind()), buffer)
        found.append(buffer.getvalue())
    return found


def script(rng: Random) -> bytes:
    return rng.choice(scripts())
