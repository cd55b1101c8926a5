"""Mutations: of bytes, of trees as JSON and yaml have them, and of the containers of weights, one layer deep."""

import io
import json
import struct
import zipfile
from random import Random

NAMES = ["", ".", "..", "../../etc/passwd", "/etc/passwd", "a/../../b", "a\0b", "a" * 300, "x/" * 200, "\ud800", "é",
         "\u202etxt", "\x1b[31m", "nan", "a\nb", "~", "-", "%s%n", "{}", "{0.__class__}", "__class__", "CON", " ",
         "$HOME", "`id`", "a" * 5000, "\ufeff", "1e999", "😀", "\\", "C:\\x", "dassl", "_BASE_", "*"]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 3, 255, 256, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, -(2**63), 10**30, 0.0, -0.0, 0.5,
           1e-320, 1e308, float("inf"), float("-inf"), float("nan"), 1.0]  # fmt: skip
OTHERS = [None, True, False, [], {}, [[]], {"": {}}, [None], {"a": 1}]
WORDS = [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r\n", b"\\u0000", b"\\ud800", b'"', b"'", b"{", b"}", b"[", b"]",  # noqa: E501
         b"NaN", b"Infinity", b"-1", b"9" * 5000, b"1e999", b"../", b"\x1b[2J", b"\xe2\x80\xae", b",", b":", b"&a ", b"*a",  # noqa: E501
         b"!!python/object/apply:os.mkdir [canary]", b"null", b"true", b"\x80", b".", b"(" * 500, b"%", b"\t"]  # fmt: skip  # noqa: E501
SIZES = [0, 1, 7, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**40, 2**62, 2**63 - 1, 2**64 - 1]


def octets(rng: Random, data: bytes, other: bytes = b"") -> bytes:
    """One change of bytes: cut, flipped, spliced, repeated, a number of another size, a word that means something."""
    if not data:
        return rng.choice(WORDS)
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice((1, 1, 2, 4, 8, 16, 64, 1000)))
    kind = rng.randrange(9)
    if kind == 0:
        return data[:start]
    if kind == 1:
        flipped = bytearray(data)
        flipped[start] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind == 2:
        return data[:start] + data[end:]
    if kind == 3:
        return data[:start] + rng.choice(WORDS) + data[start:]
    if kind == 4:
        return data[:end] + data[start:end] * rng.choice((1, 2, 50)) + data[end:]
    if kind == 5:
        size = struct.pack(rng.choice("<>") + "Q", rng.choice(SIZES))
        width = rng.choice((1, 2, 4, 8))
        size = size[:width] if rng.random() < 0.5 else size[-width:]
        return data[:start] + size + data[start + width :]
    if kind == 6:
        return data[:start] + rng.randbytes(end - start) + data[end:]
    if kind == 7 and other:
        return data[:start] + other[rng.randrange(len(other)) :]
    there = rng.randrange(len(data))
    return data[:there] + data[start:end] + data[there:]


def value(rng: Random):
    """Any leaf."""
    return rng.choice(rng.choice((NAMES, NUMBERS, OTHERS)))


def nested(rng: Random):
    """A tree deeper than any recursion."""
    tree, kind = [], rng.random()
    for _ in range(rng.choice((30, 200, 900, 5000))):
        tree = [tree] if kind < 0.5 else {"a": tree}
    return tree


def tree(rng: Random, root):
    """A copy of a tree of dicts, lists and leaves, with one place changed: a value, a name, an order, a type."""
    places = []

    def collect(node, path):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((*path, key))
            if isinstance(child, dict | list) and len(path) < 12:
                collect(child, (*path, key))

    if isinstance(root, dict | list):
        collect(root, ())
    if not places or rng.random() < 0.02:
        return rng.choice((value(rng), nested(rng), [root], {"a": root}))
    return _changed(rng, root, rng.choice(places), places)


def _changed(rng, root, path, places):
    """`root` with another thing at `path`; what is not on the path is shared."""
    copy = dict(root) if isinstance(root, dict) else list(root)
    key, *rest = path
    if rest:
        copy[key] = _changed(rng, root[key], rest, places)
        return copy
    kind, old = rng.randrange(8), copy[key]
    if kind <= 2:
        copy[key] = value(rng)
    elif kind == 3:
        copy[key] = similar(rng, old)
    elif kind == 4:
        del copy[key]
    elif kind == 5 and isinstance(copy, dict):
        copy[rng.choice(NAMES)] = copy.pop(key) if rng.random() < 0.5 else value(rng)
    elif kind == 6 and isinstance(copy, list):
        copy.insert(rng.randrange(len(copy) + 1), rng.choice((old, value(rng))))
    elif kind == 7 and rng.random() < 0.1:
        copy[key] = nested(rng)
    else:
        copy[key] = [old] if rng.random() < 0.5 else {"a": old}
    return copy


def similar(rng: Random, old):
    """Something like the old value, of the same type or of a near one."""
    if isinstance(old, bool) or old is None:
        return rng.choice((not old, 0, 1, "true"))
    if isinstance(old, int):
        return rng.choice((old + 1, old - 1, -old, float(old), str(old), old * 10**12, [old]))
    if isinstance(old, float):
        return rng.choice((-old, old * 1e300, int(old) if abs(old) < 1e300 else 0, str(old)))
    if isinstance(old, str):
        return rng.choice((old.upper(), old + "/", "/" + old, "../" + old, old * 400, old[:-1], old + "\0", old + "\n"))
    return rng.choice((len(old), list(old), dict.fromkeys(map(str, old)), [old, old]))


def text_tree(rng: Random, data: bytes) -> bytes:
    """JSON with a changed tree; bytes changed where it is none."""
    try:
        root = json.loads(data)
    except (ValueError, RecursionError):
        return octets(rng, data)
    try:
        return json.dumps(tree(rng, root)).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return b"[" * 100_000 if rng.random() < 0.5 else b'{"a":' * 50_000


def archive(rng: Random, data: bytes) -> bytes:
    """A zip archive with one entry changed, dropped, doubled or renamed, or its sizes wrong."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            entries = [(entry.filename, packed.read(entry)) for entry in packed.infolist()]
    except Exception:  # a mutant is no archive any more
        return octets(rng, data)
    if not entries:
        return octets(rng, data)
    i = rng.randrange(len(entries)) if rng.random() < 0.4 else _program(entries)
    name, content = entries[i]
    kind = rng.randrange(10)
    if kind == 0:
        del entries[i]
    elif kind == 1:
        entries.append(entries[i])
    elif kind == 2:
        entries[i] = (rng.choice([f"../{name}", name + "x", "/tmp/x", "a" * 300, "archive/constants.pkl"]), content)
    else:
        entries[i] = (name, octets(rng, content))
    packing = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    return packed_of(entries, packing)


def _program(entries):
    return next((i for i, (name, _) in enumerate(entries) if name.endswith("data.pkl")), 0)


def packed_of(entries, packing=zipfile.ZIP_STORED) -> bytes:
    """A zip archive of (name, content) pairs; names may come twice."""
    import warnings

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(buffer, "w", packing) as packed:
            for name, content in entries:
                packed.writestr(zipfile.ZipInfo(name), content, packing)
    return buffer.getvalue()


def safetensors(rng: Random, data: bytes) -> bytes:
    """A safetensors file with another header: its tree, its length, or what follows it."""
    if len(data) < 8:
        return octets(rng, data)
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = rng.randrange(4)
    if kind == 0:
        return struct.pack("<Q", rng.choice(SIZES)) + data[8:]
    if kind == 1:
        return data[: 8 + length] + octets(rng, body)
    header = text_tree(rng, header) if kind == 2 else octets(rng, header)
    return struct.pack("<Q", len(header)) + header + body


def mutated(rng: Random, name: str, data: bytes, other: bytes = b"") -> bytes:
    """A file changed in the way that its name and beginning suggest."""
    if rng.random() < 0.25:
        return octets(rng, data, other)
    if name.endswith(".json"):
        return text_tree(rng, data)
    if name.endswith(".safetensors"):
        return safetensors(rng, data)
    return archive(rng, data) if data[:2] == b"PK" else octets(rng, data, other)
