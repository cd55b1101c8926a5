"""Image files: what becomes of their pixels, and which are refused."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from dassl.utils import UserError, is_deep_image, read_image
from dassl.utils.images import IMAGE_FORMATS


def test_images(tmp_path):
    Image.new("LA", (4, 3), (10, 255)).save(tmp_path / "grey.png")
    image = read_image(tmp_path / "grey.png")
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (4, 3), (10, 10, 10))
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    (tmp_path / "empty.jpg").touch()
    for name, words in (("cut.png", "900 bytes"), ("empty.jpg", "0 bytes"), ("none.jpg", "File is not found")):
        with pytest.raises(UserError, match=words) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)


SIXTEEN = np.array([[0, 256, 257], [32896, 65279, 65535]])  # / 257, rounded down: 0, 0, 1 and 128, 254, 255


def tiff(values, bits, photometric=1):
    """A TIFF of whole numbers, by hand: Pillow writes none of 12 bits, or whose 0 is white."""
    rows, columns = values.shape
    row = ["".join(f"{value:0{bits}b}" for value in line) for line in values]  # a row ends with a byte
    if bits == 12:
        pixels = b"".join(int(line.ljust(-(-len(line) // 8) * 8, "0"), 2).to_bytes(-(-len(line) // 8)) for line in row)
    else:
        pixels = values.astype("<u2").tobytes()
    tags = {256: columns, 257: rows, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: rows, 279: len(pixels)}
    kinds = {tag: 4 if tag in (273, 279) else 3 for tag in tags}
    entries = b"".join(struct.pack("<HHII", tag, kinds[tag], 1, value) for tag, value in tags.items())
    pixels += b"\0" * (len(pixels) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("grey.png", SIXTEEN.astype("<u2")),
        ("grey.tif", SIXTEEN.astype("<u2")),
        ("big_end.tif", SIXTEEN.astype(">u2")),
        ("long.tif", SIXTEEN.astype("<i4")),
        ("float.tif", (SIXTEEN / 65535).astype("<f4")),
        ("twelve.tif", tiff(SIXTEEN * 4095 // 65535, 12)),
        ("white_is_0.tif", tiff(65535 - SIXTEEN, 16, photometric=0)),
        ("grey.pgm", b"P5 3 2 65535\n" + SIXTEEN.astype(">u2").tobytes()),
    ],
)
def test_grey_images_of_more_than_8_bits_are_scaled(tmp_path, name, values):
    if isinstance(values, bytes):
        (tmp_path / name).write_bytes(values)
    else:
        Image.fromarray(values).save(tmp_path / name)
    expected = [[0, 0, 0], [127, 254, 255]] if name == "twelve.tif" else [[0, 0, 1], [128, 254, 255]]
    image = read_image(tmp_path / name)
    assert image.mode == "RGB" and is_deep_image(tmp_path / name)
    assert np.array_equal(np.asarray(image), np.repeat(np.array(expected)[..., None], 3, axis=2))


def test_every_level_of_8_bits_comes_back_from_16_and_from_floats(tmp_path):
    levels = np.arange(256).reshape(16, 16)
    for name, values in (("a.png", (levels * 257).astype("<u2")), ("b.tif", (levels / 255).astype("<f4"))):
        Image.fromarray(values).save(tmp_path / name)
        assert np.array_equal(np.asarray(read_image(tmp_path / name))[..., 0], levels)


@pytest.mark.parametrize("values", [[[-1, 5]], [[0, 65536]], [[0.0, 1.5]], [[-0.25, 0.0]], [[float("nan"), 0.0]]])
def test_values_outside_their_range_are_refused(tmp_path, values):
    array = np.array(values)
    Image.fromarray(array.astype("<f4" if array.dtype.kind == "f" else "<i4")).save(tmp_path / "scan.tif")
    with pytest.raises(UserError, match=r"scan\.tif.*values go from .* expected 0 to (1|65535)$"):
        read_image(tmp_path / "scan.tif")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_images_of_8_bits_are_what_pillow_makes_of_them(tmp_path, mode):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 8, 4), dtype="u1"))
    options = {"transparency": 3} if mode == "P" else {}
    (noise.convert("RGB") if mode == "P" else noise).convert(mode).save(tmp_path / "a.png", **options)
    with Image.open(tmp_path / "a.png") as stored:
        assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(stored.convert("RGB")))
    assert not is_deep_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_every_format_is_read(tmp_path, kind):
    Image.new("RGB", (20, 16), (200, 40, 90)).save(tmp_path / "a", format=kind)
    image = read_image(tmp_path / "a")
    assert image.size == (20, 16) and np.abs(np.asarray(image)[8, 8].astype(int) - (200, 40, 90)).max() < 16


def test_the_limit_of_pixels_is_a_key(tmp_path):
    Image.new("L", (4200, 4200)).save(tmp_path / "white.png")  # 17.6 million pixels in 17 KB
    with pytest.raises(UserError, match=r"white\.png.*4200 x 4200 pixels.*INPUT\.MAX_PIXELS"):
        read_image(tmp_path / "white.png")
    assert read_image(tmp_path / "white.png", max_pixels=17_640_000).size == (4200, 4200)
    with pytest.raises(UserError, match=r"more than 17639999; INPUT\.MAX_PIXELS"):
        read_image(tmp_path / "white.png", max_pixels=17_639_999)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_on_request_only(tmp_path, suffix, orientation):
    noise = np.random.default_rng(1).integers(0, 256, (8, 16), dtype="u1")
    image = Image.fromarray(noise).resize((32, 16)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    with Image.open(tmp_path / f"a.{suffix}") as stored:
        as_stored, upright = (np.asarray(some.convert("RGB")) for some in (stored, ImageOps.exif_transpose(stored)))
    assert np.array_equal(np.asarray(read_image(tmp_path / f"a.{suffix}")), as_stored)
    turned = np.asarray(read_image(tmp_path / f"a.{suffix}", exif_orientation=True))
    assert np.array_equal(turned, upright) and (orientation == 1 or not np.array_equal(turned, as_stored))
