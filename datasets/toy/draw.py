"""Objects, textures and glyphs of the toy world, drawn at three times the final size.

Images are SIDE x SIDE RGB; coordinates and radii are in final pixels, x to the right, y down. What is drawn is an
enlarged image (BIG, BIG, 3), which `shrink` averages by boxes, so edges come out smooth. All chance comes from the
numpy generator that the caller passes in.
"""

from functools import cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

from dassl.utils import import_matplotlib

SIDE, SCALE = 32, 3
BIG = SIDE * SCALE
_Y, _X = np.mgrid[0:BIG, 0:BIG].astype(np.float32) / SCALE

COLOURS = {
    "black": (25, 25, 30),
    "blue": (35, 75, 215),
    "brown": (125, 75, 35),
    "cyan": (45, 205, 220),
    "gray": (130, 130, 130),
    "green": (35, 150, 55),
    "orange": (245, 135, 25),
    "pink": (250, 135, 190),
    "purple": (130, 45, 175),
    "red": (220, 35, 35),
    "white": (250, 250, 250),
    "yellow": (245, 220, 35),
}


def generator(*names: object) -> Generator:
    """A numpy generator seeded by the BLAKE2 of the names, the same on every machine and in every process."""
    key = "/".join(str(name) for name in names).encode()
    return np.random.default_rng(int.from_bytes(blake2b(key, digest_size=16).digest(), "big"))


def jittered(rng: Generator, name: str, spread: float = 14) -> np.ndarray:
    """RGB (3,) float32 near a named colour."""
    rgb = np.array(COLOURS[name], np.float32) + rng.uniform(-spread, spread, 3)
    return np.clip(rgb, 0, 255).astype(np.float32)


def second_tone(colour: np.ndarray) -> np.ndarray:
    """A clearly darker or lighter version of an RGB colour, for two-tone textures of one named colour."""
    return colour * 0.45 if colour.mean() > 95 else colour * 0.35 + 165


# ---- shapes: polygons in the unit circle, y down ----------------------------------------------------------


def _polar(radius, n):
    """(n, 2): points around the centre, clockwise from the top. radius: a number or n numbers."""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return np.stack([radius * np.sin(t), -radius * np.cos(t)], 1)


def _disc(x, y, r):
    return _polar(r, 32) + np.array([x, y])


def _heart():
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 16.5, -(y + 2.5) / 15.5], 1)


def _moon():
    outer = np.linspace(0.18 * np.pi, 1.82 * np.pi, 30)
    inner = np.linspace(1.70 * np.pi, 0.30 * np.pi, 30)
    a = np.stack([0.15 + np.cos(outer), np.sin(outer)], 1)
    b = np.stack([0.50 + 0.78 * np.cos(inner), 0.78 * np.sin(inner)], 1)
    return np.concatenate([a, b]) * 0.95


_ARROW = [(0, -1), (0.8, -0.1), (0.3, -0.1), (0.3, 1), (-0.3, 1), (-0.3, -0.1), (-0.8, -0.1)]
_BOLT = [(0.25, -1), (-0.65, 0.2), (-0.08, 0.2), (-0.35, 1), (0.65, -0.25), (0.08, -0.25), (0.6, -1)]
_CROSS = [(-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33), (0.33, 1), (-0.33, 1),
          (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33)]  # fmt: skip
HOLES = {"ring": 1}  # which polygon of a shape is cut out
SHAPES = {
    "arrow": [np.array(_ARROW)],
    "bolt": [np.array(_BOLT)],
    "circle": [_disc(0, 0, 0.92)],
    "cloud": [_disc(-0.5, 0.2, 0.45), _disc(0.5, 0.2, 0.45), _disc(-0.15, -0.15, 0.5), _disc(0.3, -0.1, 0.42),
              np.array([(-0.5, 0.0), (0.5, 0.0), (0.5, 0.65), (-0.5, 0.65)])],
    "cross": [np.array(_CROSS)],
    "diamond": [np.array([(0, -1), (0.62, 0), (0, 1), (-0.62, 0)])],
    "flower": [_polar(0.70 + 0.32 * np.cos(np.linspace(0, 10 * np.pi, 80, endpoint=False)), 80)],
    "heart": [_heart()],
    "hexagon": [_polar(1.0, 12)[1::2]],
    "moon": [_moon()],
    "oval": [_polar(1.0, 48) * np.array([1.0, 0.52])],
    "pentagon": [_polar(1.0, 5)],
    "ring": [_disc(0, 0, 0.95), -_disc(0, 0, 0.52)],
    "square": [np.array([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)])],
    "star": [_polar(np.array([1.0, 0.42] * 5), 10)],
    "triangle": [np.array([(0, -0.95), (0.98, 0.75), (-0.98, 0.75)])],
}  # fmt: skip


def shape_mask(shape: str, x: float, y: float, radius: float, angle: float = 0.0) -> np.ndarray:
    """Boolean mask (BIG, BIG) of a shape centred at (x, y), turned clockwise by `angle` degrees."""
    a = np.deg2rad(angle)
    turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    mask = Image.new("1", (BIG, BIG))
    pen = ImageDraw.Draw(mask)
    for number, polygon in enumerate(SHAPES[shape]):
        points = ((polygon @ turn) * radius + (x, y)) * SCALE
        pen.polygon([tuple(p) for p in points.tolist()], fill=int(HOLES.get(shape) != number))
    return np.asarray(mask)


# ---- textures: a weight in [0, 1] per pixel, 1 where the second tone shows ---------------------------------


def _wave(v):
    return np.abs((v % 1.0) - 0.5) * 2


def _dotted(rng, x, y):
    p = rng.uniform(5.0, 6.0)
    x = x + p / 2 * (np.floor(y / p) % 2)
    return np.hypot(x % p - p / 2, y % p - p / 2) < 0.31 * p


def _checkered(rng, x, y):
    p = rng.uniform(3.8, 5.0)
    return (np.floor(x / p) + np.floor(y / p)) % 2 > 0


def _grid(rng, x, y):
    p = rng.uniform(5.2, 6.2)
    return (x % p < 1.5) | (y % p < 1.5)


def _brick(rng, x, y):
    h = rng.uniform(4.6, 5.6)
    row = np.floor(y / h)
    return (y % h < 1.3) | ((x + 4.5 * (row % 2)) % 9.0 < 1.3)


def _ringed(rng, x, y):
    return (np.hypot(x - rng.uniform(-2, 2), y - rng.uniform(-2, 2)) / rng.uniform(4.6, 5.6)) % 1 < 0.5


def _marbled(rng, x, y):
    u = x + 4 * np.sin(y / 3.1 + rng.uniform(0, 6)) + 3 * np.sin((x + y) / 4.7 + rng.uniform(0, 6))
    return _wave((u + 1.5 * np.sin(y)) / 13.0) ** 2


# name -> (rng, x, y) -> weight
TEXTURES = {
    "brick": _brick,
    "checkered": _checkered,
    "dotted": _dotted,
    "grainy": lambda rng, x, y: np.kron(rng.random((SIDE, SIDE)) < 0.42, np.ones((SCALE, SCALE), bool)),
    "grid": _grid,
    "marbled": _marbled,
    "plain": lambda rng, x, y: np.zeros_like(x, bool),
    "ringed": _ringed,
    "shaded": lambda rng, x, y: np.clip((x + 11) / 22, 0, 1),
    "striped": lambda rng, x, y: (y / rng.uniform(4.6, 6.0)) % 1 < 0.5,
    "wavy": lambda rng, x, y: ((y + 1.6 * np.sin(x * 2 * np.pi / 10.0)) / rng.uniform(4.6, 5.6)) % 1 < 0.5,
    "zigzag": lambda rng, x, y: ((y + 3.6 * _wave(x / 8.0)) / rng.uniform(5.2, 6.2)) % 1 < 0.45,
}
_UPRIGHT = ("brick", "grid", "checkered", "wavy", "zigzag")  # turned only a little, as people know them


def texture(rng: Generator, name: str, first: np.ndarray, second: np.ndarray, centre: tuple = (16, 16)) -> np.ndarray:
    """(BIG, BIG, 3) float32: a texture in the RGB colours `first` and `second`."""
    limit = 15 if name in _UPRIGHT else 180
    a = np.deg2rad(rng.uniform(-limit, limit))
    dx, dy = _X - centre[0], _Y - centre[1]
    x, y = dx * np.cos(a) + dy * np.sin(a), dy * np.cos(a) - dx * np.sin(a)
    if name != "ringed" and name != "shaded":
        x, y = x + rng.uniform(0, 12), y + rng.uniform(0, 12)
    weight = TEXTURES[name](rng, x, y).astype(np.float32)[..., None]
    return first + (second - first) * weight


# ---- glyphs ------------------------------------------------------------------------------------------------


@cache
def _font(name, size):
    folder = Path(import_matplotlib().get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"{name}.ttf"), size, layout_engine=ImageFont.Layout.BASIC)


def glyph_mask(text: str, font: str, x: float, y: float, height: float, angle: float = 0.0) -> np.ndarray:
    """Boolean mask (BIG, BIG) of a text in a font of matplotlib's, about `height` pixels high, at (x, y)."""
    face = _font(font, round(height * SCALE * 1.35))
    left, top, right, bottom = face.getbbox(text)
    mask = Image.new("L", (BIG, BIG))
    where = (x * SCALE - (left + right) / 2, y * SCALE - (top + bottom) / 2)
    ImageDraw.Draw(mask).text(where, text, fill=255, font=face)
    if angle:
        mask = mask.rotate(-angle, Image.Resampling.BILINEAR, center=(x * SCALE, y * SCALE))
    return np.asarray(mask) > 127


def paint(mask: np.ndarray, top: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """(BIG, BIG, 3): `top` where `mask` (BIG, BIG) is true, `ground` elsewhere; each an RGB colour or an image."""
    return np.where(mask[..., None], top, ground)


def shrink(pixels: np.ndarray) -> np.ndarray:
    """The image (SIDE, SIDE, 3) float32 in 0..255 of an enlarged one, numpy's mean to the bit."""
    boxes = pixels.astype(np.float32).reshape(SIDE, SCALE, SIDE, SCALE, 3)
    total = sum(boxes[:, row, :, column] for row in range(SCALE) for column in range(SCALE))
    return total / np.float32(SCALE**2)
