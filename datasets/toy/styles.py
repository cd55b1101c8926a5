"""Styles: what happens to a clean picture (H, W, 3) float32 in 0..255 at a strength in 0..1.

Each function is `style(rng, picture, strength) -> picture`; 0 leaves the picture almost as it is. The
pretraining pictures use them mildly (and captions name them), the data sets use them strongly.
"""

import numpy as np
from PIL import Image, ImageFilter

from datasets.toy.draw import SCALE, SHAPES, SIDE, shape_mask


def _image(picture):
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def _array(image):
    return np.asarray(image, np.float32)


def noise(rng, picture, strength):
    """Gaussian noise, up to a deviation of 110 grey levels."""
    return picture + rng.normal(0, 110 * strength, picture.shape).astype(np.float32)


def speckle(rng, picture, strength):
    """A share of the pixels replaced by random colours."""
    hit = rng.random((*picture.shape[:2], 1)) < 0.6 * strength
    return np.where(hit, rng.uniform(0, 255, picture.shape).astype(np.float32), picture)


def sketch(rng, picture, strength):
    """Towards dark outlines on paper; at 1 no colour is left."""
    smooth = _array(_image(picture).filter(ImageFilter.GaussianBlur(0.5)))
    dx = np.abs(np.diff(smooth, axis=1, append=smooth[:, -1:])).max(-1)
    dy = np.abs(np.diff(smooth, axis=0, append=smooth[-1:])).max(-1)
    ink = np.clip((dx + dy) / 70.0, 0, 1)[..., None]
    paper = rng.uniform(225, 250) + rng.normal(0, 5, (*ink.shape[:2], 1))
    lines = paper * (1 - ink) + rng.uniform(20, 90) * ink
    return (picture + (lines - picture) * min(1.0, 1.25 * strength)).astype(np.float32)


def rotation(rng, picture, strength):
    """Turned by up to 75 degrees either way; the corners take the border's mean colour."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]).mean(0)
    angle = rng.uniform(-75, 75) * strength
    fill = tuple(int(v) for v in np.clip(border, 0, 255))
    return _array(_image(picture).rotate(angle, Image.Resampling.BILINEAR, fillcolor=fill))


def clutter(rng, picture, strength):
    """Up to ten small coloured scraps over the picture."""
    picture = picture.copy()
    names = sorted(SHAPES)
    for _ in range(rng.poisson(10 * strength)):
        name = names[rng.integers(len(names))]
        mask = shape_mask(name, *rng.uniform(1, SIDE - 1, 2), rng.uniform(1.2, 2.8), rng.uniform(0, 360))
        cover = mask.reshape(SIDE, SCALE, SIDE, SCALE).mean((1, 3), dtype=np.float32)[..., None]
        picture = picture * (1 - cover) + rng.uniform(0, 255, 3).astype(np.float32) * cover
    return picture


def fade(rng, picture, strength):
    """Low contrast: pulled towards one random grey, up to 92 %."""
    grey = rng.uniform(70, 190)
    return grey + (picture - grey) * (1 - 0.92 * strength)


def blur(rng, picture, strength):
    """Gaussian blur, up to a radius of 3 pixels."""
    return _array(_image(picture).filter(ImageFilter.GaussianBlur(3.0 * strength)))


def tint(rng, picture, strength):
    """A coloured light over everything."""
    light = rng.uniform(0, 255, 3).astype(np.float32)
    return picture * (1 - 0.75 * strength) + light * 0.75 * strength


def invert(rng, picture, strength):
    """Towards the negative; from about 0.5 on, contrast comes back inverted."""
    return picture + (255 - 2 * picture) * strength


def dark(rng, picture, strength):
    """Dim light, as at night."""
    return picture * (1 - 0.9 * strength)


def pixelate(rng, picture, strength):
    """Coarse blocks, up to 4 pixels wide (8 x 8 blocks)."""
    side = round(SIDE / (1 + 3 * strength))
    small = _image(picture).resize((side, side), Image.Resampling.BOX)
    return _array(small.resize((SIDE, SIDE), Image.Resampling.NEAREST))


def occlude(rng, picture, strength):
    """A bar in one colour over the picture, up to 14 pixels wide."""
    picture = picture.copy()
    width = round(14 * strength)
    start = int(rng.integers(0, SIDE - width + 1))
    tone = rng.uniform(0, 255, 3).astype(np.float32)
    if rng.random() < 0.5:
        picture[start : start + width] = tone
    else:
        picture[:, start : start + width] = tone
    return picture


_ALL = (noise, speckle, sketch, rotation, clutter, fade, blur, tint, invert, dark, pixelate, occlude)
STYLES = {function.__name__: function for function in _ALL}


def finish(picture):
    """uint8 picture."""
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)
