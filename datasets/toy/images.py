"""One function for each kind of toy image. What is not given is drawn at random; all give (SIDE, SIDE, 3).

Pretraining and data sets share these functions; they differ in styles, fonts and held-out combinations.

A style is what happens to a clean image (H, W, 3) float32 in 0..255 at a strength in 0..1: `style(rng, image,
strength) -> image`; 0 leaves the image almost as it is. The pretraining images use them mildly (and captions name
them), the data sets use them strongly.
"""

from collections.abc import Iterable

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike
from PIL import Image, ImageFilter

from datasets.toy import draw
from datasets.toy.draw import COLOURS, SHAPES, SIDE, jittered
from datasets.toy.scenes import scene

Name = str | None


def _image(image):
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))


def _array(image):
    return np.asarray(image, np.float32)


def noise(rng: Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """Gaussian noise, up to a deviation of 110 grey levels."""
    return image + rng.normal(0, 110 * strength, image.shape).astype(np.float32)


def speckle(rng: Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """A share of the pixels replaced by random colours."""
    hit = rng.random((*image.shape[:2], 1)) < 0.6 * strength
    return np.where(hit, rng.uniform(0, 255, image.shape).astype(np.float32), image)


def sketch(rng: Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """Towards dark outlines on paper; at 1 no colour is left."""
    smooth = _array(_image(image).filter(ImageFilter.GaussianBlur(0.5)))
    dx = np.abs(np.diff(smooth, axis=1, append=smooth[:, -1:])).max(-1)
    dy = np.abs(np.diff(smooth, axis=0, append=smooth[-1:])).max(-1)
    ink = np.clip((dx + dy) / 70.0, 0, 1)[..., None]
    paper = rng.uniform(225, 250) + rng.normal(0, 5, (*ink.shape[:2], 1))
    lines = paper * (1 - ink) + rng.uniform(20, 90) * ink
    return (image + (lines - image) * min(1.0, 1.25 * strength)).astype(np.float32)


def rotation(rng: Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """Turned by up to 75 degrees either way; the corners take the border's mean colour."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).mean(0)
    angle = rng.uniform(-75, 75) * strength
    fill = tuple(int(v) for v in np.clip(border, 0, 255))
    return _array(_image(image).rotate(angle, Image.Resampling.BILINEAR, fillcolor=fill))


def clutter(rng: Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """Up to ten small coloured scraps over the image."""
    image = image.copy()
    names = sorted(SHAPES)
    for _ in range(rng.poisson(10 * strength)):
        name = names[rng.integers(len(names))]
        mask = draw.shape_mask(name, *rng.uniform(1, SIDE - 1, 2), rng.uniform(1.2, 2.8), rng.uniform(0, 360))
        cover = mask.reshape(SIDE, draw.SCALE, SIDE, draw.SCALE).mean((1, 3), dtype=np.float32)[..., None]
        image = image * (1 - cover) + rng.uniform(0, 255, 3).astype(np.float32) * cover
    return image


def fade(rng: Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """Low contrast: pulled towards one random grey, up to 92 %."""
    grey = rng.uniform(70, 190)
    return grey + (image - grey) * (1 - 0.92 * strength)


def blur(rng: Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """Gaussian blur, up to a radius of 3 pixels."""
    return _array(_image(image).filter(ImageFilter.GaussianBlur(3.0 * strength)))


def tint(rng: Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """A coloured light over everything."""
    light = rng.uniform(0, 255, 3).astype(np.float32)
    return image * (1 - 0.75 * strength) + light * 0.75 * strength


def invert(rng: Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """Towards the negative; from about 0.5 on, contrast comes back inverted."""
    return image + (255 - 2 * image) * strength


def dark(rng: Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """Dim light, as at night."""
    return image * (1 - 0.9 * strength)


def pixelate(rng: Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """Coarse blocks, up to 4 pixels wide (8 x 8 blocks)."""
    side = round(SIDE / (1 + 3 * strength))
    small = _image(image).resize((side, side), Image.Resampling.BOX)
    return _array(small.resize((SIDE, SIDE), Image.Resampling.NEAREST))


def occlude(rng: Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """A bar in one colour over the image, up to 14 pixels wide."""
    image = image.copy()
    width = round(14 * strength)
    start = int(rng.integers(0, SIDE - width + 1))
    tone = rng.uniform(0, 255, 3).astype(np.float32)
    if rng.random() < 0.5:
        image[start : start + width] = tone
    else:
        image[:, start : start + width] = tone
    return image


_ALL = (noise, speckle, sketch, rotation, clutter, fade, blur, tint, invert, dark, pixelate, occlude)
STYLES = {function.__name__: function for function in _ALL}


def finish(image: np.ndarray) -> np.ndarray:
    """uint8 image."""
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


PLACES = {
    "top left": (7, 7),
    "top": (16, 6.5),
    "top right": (25, 7),
    "left": (6.5, 16),
    "center": (16, 16),
    "right": (25.5, 16),
    "bottom left": (7, 25),
    "bottom": (16, 25.5),
    "bottom right": (25, 25),
}
_TURNS = ("up", "up right", "right", "down right", "down", "down left", "left", "up left")
DIRECTIONS = {name: 45 * eighth for eighth, name in enumerate(_TURNS)}
SIZES = {"small": (3.2, 4.4), "medium": (7.2, 8.6), "large": (12.6, 14.2)}
NUMBERS = ("one", "two", "three", "four", "five")
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTER_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono",
                "STIXGeneral", "STIXGeneralBol", "cmr10", "cmb10", "cmtt10")  # fmt: skip
OTHER_FONTS = ("DejaVuSans-Oblique", "DejaVuSerif-BoldItalic", "DejaVuSansMono-BoldOblique",
               "STIXGeneralItalic", "STIXGeneralBolIta", "cmss10", "cmti10",
               "DejaVuSerif-Italic")  # fmt: skip
_CELLS = [(6.0 + 10 * i, 6.0 + 10 * j) for i in range(3) for j in range(3)]


def pick(rng: Generator, names: Iterable[str]) -> str:
    """One of the names, in sorted order for a dict, so that the draw does not depend on how they are held."""
    names = sorted(names) if isinstance(names, dict) else list(names)
    return names[int(rng.integers(len(names)))]


def far(a: ArrayLike, b: ArrayLike, least: float = 150) -> bool:
    """Whether two RGB colours differ enough (sum of absolute differences) to be told apart."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).sum()) >= least


def ground_for(rng: Generator, colour: np.ndarray, ground: str | None = None) -> np.ndarray:
    """RGB of a background that differs from `colour`: the named `ground` if given, else mostly neutral."""
    if ground is not None:
        return jittered(rng, ground)
    while True:
        if rng.random() < 0.65:
            level = rng.uniform(200, 255) if rng.random() < 0.75 else rng.uniform(0, 70)
            rgb = np.clip(level + rng.uniform(-18, 18, 3), 0, 255).astype(np.float32)
        else:
            rgb = jittered(rng, pick(rng, COLOURS), 30)
        if far(rgb, colour, 190):
            return rgb


def _put(rng, ground, shape, colour, pattern, x, y, radius, angle):
    top = colour if pattern == "plain" else draw.texture(rng, pattern, colour, draw.second_tone(colour), (x, y))
    return draw.paint(draw.shape_mask(shape, x, y, radius, angle), top, ground)


def thing(
    rng: Generator, shape: Name = None, colour: Name = None, pattern: Name = "plain", ground: Name = None,
    radius: tuple[float, float] = (9.0, 13.0), at: np.ndarray | None = None, angle: float | None = None,
) -> np.ndarray:  # fmt: skip
    """One object; `angle` in degrees clockwise, `at` its centre, `pattern` a texture's name."""
    shape, colour = shape or pick(rng, SHAPES), jittered(rng, colour or pick(rng, COLOURS))
    pattern = pattern or pick(rng, draw.TEXTURES)
    r = rng.uniform(*radius)
    slack = max(15.5 - r, 0.5)
    x, y = at if at is not None else 16 + rng.uniform(-slack, slack, 2) * 0.8
    angle = rng.uniform(-10, 10) if angle is None else angle + rng.uniform(-6, 6)
    return draw.shrink(_put(rng, ground_for(rng, colour, ground), shape, colour, pattern, x, y, r, angle))


def counted(rng: Generator, number: int, shape: Name = None, colour: Name = None) -> np.ndarray:
    """`number` (an int) equal objects on loose grid places."""
    shape, tone = shape or pick(rng, SHAPES), jittered(rng, colour or pick(rng, COLOURS))
    pixels = ground_for(rng, tone)
    for cell in rng.permutation(len(_CELLS))[:number]:
        x, y = np.array(_CELLS[cell]) + rng.uniform(-1.2, 1.2, 2)
        pixels = _put(rng, pixels, shape, tone, "plain", x, y, rng.uniform(3.8, 4.6), rng.uniform(-8, 8))
    return draw.shrink(pixels)


def paired(rng: Generator, first: str, relation: str, second: str) -> np.ndarray:
    """Two objects; relation: above, left of, inside."""
    one = jittered(rng, pick(rng, COLOURS))
    two = jittered(rng, pick(rng, COLOURS))
    while relation == "inside" and not far(one, two, 190):
        two = jittered(rng, pick(rng, COLOURS))
    pixels = ground_for(rng, two)
    while not far(pixels, one) or relation == "inside" and not far(one, two, 190):
        one = jittered(rng, pick(rng, COLOURS))
    j = rng.uniform(-1.5, 1.5, 4)
    if relation == "inside":
        spots = [(16 + j[0], 16 + j[1], rng.uniform(4.2, 5.2)), (16 + j[0] / 2, 16 + j[1] / 2, rng.uniform(13, 15))]
    elif relation == "above":
        spots = [(16 + 2 * j[0], 8.5 + j[1] / 2, rng.uniform(5.4, 6.8)),
                 (16 + 2 * j[2], 23.5 + j[3] / 2, rng.uniform(5.4, 6.8))]  # fmt: skip
    else:
        spots = [(8.5 + j[0] / 2, 16 + 2 * j[1], rng.uniform(5.4, 6.8)),
                 (23.5 + j[2] / 2, 16 + 2 * j[3], rng.uniform(5.4, 6.8))]  # fmt: skip
    for shape, tone, (x, y, r) in ((second, two, spots[1]), (first, one, spots[0])):
        pixels = _put(rng, pixels, shape, tone, "plain", x, y, r, rng.uniform(-8, 8))
    return draw.shrink(pixels)


def placed(rng: Generator, place: str, shape: Name = None, colour: Name = None) -> np.ndarray:
    """A small object at one of nine places."""
    at = np.array(PLACES[place]) + rng.uniform(-1.6, 1.6, 2)
    return thing(rng, shape, colour, radius=(4.2, 5.6), at=at)


def sized(rng: Generator, size: str, shape: Name = None, colour: Name = None) -> np.ndarray:
    """A small, medium or large object."""
    return thing(rng, shape, colour, radius=SIZES[size])


def arrow(rng: Generator, direction: str, colour: Name = None) -> np.ndarray:
    """An arrow that points in one of eight directions."""
    return thing(rng, "arrow", colour, radius=(10, 13), angle=DIRECTIONS[direction])


def glyph(rng: Generator, text: str, fonts=LETTER_FONTS, colour: Name = None, tilt: float = 8) -> np.ndarray:
    """A letter or digit in one of `fonts`."""
    tone = jittered(rng, colour or pick(rng, COLOURS))
    ground = ground_for(rng, tone)
    x, y = 16 + rng.uniform(-3, 3, 2)
    mask = draw.glyph_mask(text, pick(rng, fonts), x, y, rng.uniform(17, 23), rng.uniform(-tilt, tilt))
    return draw.shrink(draw.paint(mask, tone, ground))


def surface(rng: Generator, pattern: str, colour: Name = None, other: Name = None) -> np.ndarray:
    """A whole image of one texture, in two colours, or two tones of one."""
    first = jittered(rng, colour or pick(rng, COLOURS))
    second = jittered(rng, other) if other else draw.second_tone(first)
    return draw.shrink(draw.texture(rng, pattern, first, second))


def place(rng: Generator, name: str) -> np.ndarray:
    """A scene."""
    return draw.shrink(scene(rng, name))
