"""Files, seeds and the environment."""

import contextlib
import errno
import functools
import hashlib
import importlib
import io
import json
import math
import os
import random
import re
import reprlib
import stat
import sys
import urllib.request
import warnings
from importlib import metadata

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError, features

from .atomic import atomic_write, write_json  # noqa: F401  imported from here by trainers written for Dassl
from .errors import MissingFile, UserError
from .progress import progress
from .registry import check_availability, get_most_similar_str_to_a_from_b  # noqa: F401  likewise

MOST_TEXT = 1 << 30  # bytes; a table of a million pictures has a tenth of it
MOST_IMAGE = 1 << 30
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP") + (("AVIF",) if features.check("avif") else ())
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif", ".avif")
MOST_PIXELS, PIXELS_PER_BYTE = 1 << 24, 100  # of an image: more than both is a bomb; photographs have 1 to 20 a byte
# what Pillow's decoders raise for a damaged file
_IMAGE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)
_EIGHT_BITS = (".jpg", ".jpeg", ".jfif", ".gif", ".bmp", ".webp", ".avif")  # files that are not looked into for more
_ORIENTATION, _BITS, _PHOTOMETRIC = 274, 258, 262  # tags of EXIF and of TIFF
# EXIF's orientation -> what puts an image upright
_UPRIGHT = dict(zip(range(2, 9), (Image.Transpose(i) for i in (0, 3, 1, 5, 4, 6, 2)), strict=True))

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100


def mkdir_if_missing(dirname):
    """Make a folder with its parents; nothing happens if it exists."""
    os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath):
    """Whether `fpath` is a file; warns if it is not."""
    found = os.path.isfile(fpath)
    if not found:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return found


def listdir_nohidden(path, sort=False):
    """Names in a folder without those that start with a dot, in the system's order unless `sort`."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def brief(value, most=200):
    """The repr of what a file brought, for an error: of at most `most` characters, and made without walking all of
    it, since a few bytes can stand for more than any memory holds."""
    text = _SHORT.repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def read_text(fpath):
    """Content of a text file in UTF-8, without the byte order mark that Windows' programs put before it.

    Raises:
        MissingFile: no such file.
        UserError: no plain file, more than MOST_TEXT bytes, or not UTF-8.
    """
    check_file(fpath, MOST_TEXT)
    try:
        with open(fpath, encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UserError(f'"{fpath}" is no text in UTF-8: {error}') from None


def check_file(fpath, most=float("inf")):
    """Raise MissingFile unless `fpath` is there, UserError unless it is a plain, readable file of at most `most` bytes.

    A pipe would be waited for without end.
    """
    try:
        state = os.stat(fpath)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no name for a file
        raise MissingFile(f'File is not found at "{fpath}"') from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise MissingFile(f'File is not found at "{fpath}": {error.strerror}') from None
    if not stat.S_ISREG(state.st_mode):
        raise UserError(f'"{fpath}" is no plain file')
    if not os.access(fpath, os.R_OK):
        raise UserError(f'"{fpath}" may not be read: {os.strerror(errno.EACCES)}')
    if state.st_size > most:
        raise UserError(f'"{fpath}" has {state.st_size} bytes, expected at most {most}')


def _each_once(pairs):
    named = dict(pairs)
    if len(named) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'"{twice}" stands twice in one object')
    return named


# What lies in the place of a file that was not downloaded, or not from its own address: how it begins -> what it is
STAND_INS = {
    rb"version https://git-lfs": "a Git LFS pointer: the file that it stands for was not downloaded (git lfs pull)",
    rb"\s*<(!doctype html|html|head|\?xml|!--)": "a web page: its address leads to a page and not to the file",
    rb"\Z": "empty",
}


def stand_in(head, kinds=STAND_INS):
    """What a file is, by its first bytes, if it is one of `kinds`; else ""."""
    return next((kind for pattern, kind in kinds.items() if re.match(pattern, head, re.IGNORECASE)), "")


def read_json(fpath):
    """Parsed JSON file. Raises MissingFile, or UserError if it is not JSON or names a thing twice."""
    try:
        return json.loads(read_text(fpath), object_pairs_hook=_each_once)
    except (MissingFile, UserError):
        raise
    except ValueError as error:
        reason = stand_in(read_text(fpath)[:512].encode()) or f"not a JSON file: {error}"
        raise UserError(f'"{fpath}" is {reason}') from error
    except RecursionError:
        raise UserError(f'"{fpath}" is not a JSON file that can be read: nested too deep') from None


def _webp_pixels(head):
    """Pixels that the header of a WebP file names, which Pillow makes room for on opening; 0 of another file."""
    if len(head) < 30 or head[:4] + head[8:12] != b"RIFFWEBP":
        return 0
    if head[12:16] == b"VP8X":
        return math.prod(1 + int.from_bytes(head[i : i + 3], "little") for i in (24, 27))
    if head[12:16] == b"VP8L":
        both = int.from_bytes(head[21:25], "little")
        return (1 + (both & 0x3FFF)) * (1 + (both >> 14 & 0x3FFF))
    return math.prod(int.from_bytes(head[i : i + 2], "little") & 0x3FFF for i in (26, 28))


def _check_pixels(size, max_pixels, *sides):
    """ValueError for more pixels than `max_pixels`, or if that is 0 for so many as are out of proportion to the
    file's `size` in bytes."""
    if math.prod(sides) > (max_pixels or max(MOST_PIXELS, PIXELS_PER_BYTE * size)):
        most = f"more than {max_pixels}" if max_pixels else "a decompression bomb for so few bytes"
        raise ValueError(f"{' x '.join(map(str, sides))} pixels, {most}; INPUT.MAX_PIXELS is the limit")


def read_image(path, max_pixels=0, exif_orientation=False):
    """RGB PIL image, fully decoded.

    Grey images of more than 8 bits a pixel are brought to 0..255, rounded down: whole numbers from 0..65535 (of a
    12-bit TIFF 0..4095), floats from 0..1. max_pixels: 0 is Pillow's limit, and MOST_PIXELS for a file of few bytes.
    exif_orientation: turn the image as its EXIF data say; a TIFF is turned always, by Pillow.

    Raises:
        MissingFile: no such file.
        UserError: naming a file that is no whole image, is of another format than data sets come in (Pillow would
            start a program for some), would unpack to too much, or has values outside those ranges.
    """
    check_file(path, MOST_IMAGE)
    with open(path, "rb") as file:
        content = file.read()  # a file's own read makes room for whatever length a chunk names
    size = len(content)
    if max_pixels > (Image.MAX_IMAGE_PIXELS or max_pixels):
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own limit is one of the process
    try:
        _check_pixels(size, max_pixels, _webp_pixels(content[:30]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
                _check_pixels(size, max_pixels, *image.size)
                image.load()
                turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION)) if exif_orientation else None
                grey = _eight_bits(image) if _is_deep(image) else image
                return (grey if turn is None else grey.transpose(turn)).convert("RGB")
    except UnidentifiedImageError as error:
        kind = stand_in(content[:512]) or f"none of {', '.join(IMAGE_FORMATS)}, or of a kind that Pillow does not read"
        raise UserError(f'Image "{path}" cannot be read ({size} bytes): it is {kind}') from error
    except _IMAGE_ERRORS as error:
        limit = " INPUT.MAX_PIXELS sets another limit" if "DecompressionBomb" in type(error).__name__ else ""
        raise UserError(f'Image "{path}" cannot be read ({size} bytes): {error}{limit}') from error


def _is_deep(image):
    return image.mode == "F" or image.mode.startswith("I")


def _eight_bits(image):
    """A grey image of more than 8 bits a pixel as one of 8. ValueError: values outside its range, NaN too."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    top = 1 if image.mode == "F" else 4095 if tags.get(_BITS) == (12,) else 65535
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):
        raise ValueError(f"its values go from {low} to {high}, expected 0 to {top}")
    values = values.astype("f4" if top == 1 else "i4")
    if tags.get(_PHOTOMETRIC) == 0:  # of a TIFF whose 0 is white, Pillow turns no more than 8 bits round
        values = top - values
    return Image.fromarray((values * 255 // top).astype("u1"))


def is_deep_image(path):
    """Whether a file holds a grey image of more than 8 bits a pixel; only its head is read, and that of a name as
    JPEGs and others of 8 bits have it is not."""
    if str(path).lower().endswith(_EIGHT_BITS):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG", "PPM", "TIFF")) as image:
                return _is_deep(image)
    except _IMAGE_ERRORS:
        return False


def sha256_file(path):
    """SHA-256 of a file's bytes, in hexadecimal. Raises MissingFile."""
    try:
        with open(path, "rb") as file:
            state = hashlib.sha256()
            while block := file.read(1 << 20):
                state.update(block)
            return state.hexdigest()
    except FileNotFoundError:
        raise MissingFile(f'File is not found at "{path}"') from None


def digest(*parts):
    """128-bit BLAKE2b, in hexadecimal, of `parts` as canonical JSON (tuples count as lists)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def set_random_seed(seed):
    """Seed Python, numpy and torch (every device)."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


@functools.cache
def collect_env_info():
    """torch's report of the environment, with the version of Pillow as its last line; made once a process."""
    from torch.utils import collect_env

    asking = collect_env.get_pip_packages
    collect_env.get_pip_packages = lambda run, *rest: asking(_pip_list, *rest)  # pip itself needs a second
    try:
        return f"{collect_env.get_pretty_env_info()}\n        Pillow ({PIL.__version__})"
    finally:
        collect_env.get_pip_packages = asking


def _pip_list(command):
    """What `pip list --format=freeze` prints, as collect_env's runner of commands answers: (status, output, errors)."""
    named = ((found.metadata["Name"], found) for found in metadata.distributions())
    lines = {f"{name}=={found.version}" for name, found in named if name}
    return 0, "\n".join(sorted(lines, key=str.lower)), ""


def tolist_if_not(x):
    """`x` itself if it is a list, else a list that holds it."""
    return x if isinstance(x, list) else [x]


def download_url(url, dst, sha256=""):
    """Fetch `url` into the file `dst`, whole or not at all. sha256: what it must have, in hexadecimal.

    Raises:
        UserError: no such address, no network, no room, or another file.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f'Only http and https can be downloaded, but got "{url}"')
    state = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=60) as source, atomic_write(dst) as file:
            size = int(source.headers.get("Content-Length") or 0)
            with progress(what=os.path.basename(dst), total=size, unit="B", unit_scale=True) as bar:
                while chunk := source.read(1 << 20):
                    file.write(chunk)
                    state.update(chunk)
                    bar.update(len(chunk))
            if sha256 and state.hexdigest() != sha256:
                raise OSError(f"what arrived has sha256 {state.hexdigest()}, expected {sha256}")
    except OSError as error:
        raise UserError(f'Cannot download "{url}": {error}') from error


def import_matplotlib():
    """matplotlib -> the module, imported whatever MPLBACKEND says; nothing here opens a window.

    Jupyter and Colab name a backend in it that other environments lack, and matplotlib refuses to be imported. What it
    names is left to a notebook's own plots, where it is there.
    """
    asked = "" if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", "")
    matplotlib = importlib.import_module("matplotlib")
    if asked:
        os.environ["MPLBACKEND"] = asked
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = asked
    return matplotlib
