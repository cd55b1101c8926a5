"""Images of data sets, read whole and checked: what a file claims is not taken for granted."""

import io
import math
import os
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from .errors import UserError
from .files import check_file, stand_in

MOST_IMAGE = 1 << 30  # bytes
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP") + (("AVIF",) if features.check("avif") else ())
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif", ".avif")
MOST_PIXELS, PIXELS_PER_BYTE = 1 << 24, 100  # of an image: more than both is a bomb; photographs have 1 to 20 a byte
# what Pillow's decoders raise for a damaged file
_IMAGE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)
_EIGHT_BITS = (".jpg", ".jpeg", ".jfif", ".gif", ".bmp", ".webp", ".avif")  # files that are not looked into for more
_ORIENTATION, _BITS, _PHOTOMETRIC = 274, 258, 262  # tags of EXIF and of TIFF
# EXIF's orientation -> what puts an image upright
_UPRIGHT: dict = dict(zip(range(2, 9), (Image.Transpose(i) for i in (0, 3, 1, 5, 4, 6, 2)), strict=True))


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


def read_image(path: str | os.PathLike, max_pixels: int = 0, exif_orientation: bool = False) -> Image.Image:
    """RGB PIL image, fully decoded.

    Grey images of more than 8 bits a pixel are brought to 0..255, rounded down: whole numbers from 0..65535 (of a
    12-bit TIFF 0..4095), floats from 0..1. max_pixels: 0 is Pillow's limit, and MOST_PIXELS for a file of few bytes.
    exif_orientation: turn the image as its EXIF data say; a TIFF is turned always, by Pillow.
    MissingFile: no such file. UserError: naming a file that is no whole image, is of another format than data sets come
    in (Pillow would start a program for some), would unpack to too much, or has values outside those ranges.
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


def is_deep_image(path: str | os.PathLike) -> bool:
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
