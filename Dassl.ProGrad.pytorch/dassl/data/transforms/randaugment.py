"""Dassl's three RandAugment policies: Pillow's operations, drawn by Python's `random` (after arXiv 1909.13719).

Their ranges are Dassl's, not torchvision's. v: the value of an operation, from its range.
"""

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

FILL = (125, 123, 114)  # of a square that is cut out


def _either_sign(v):
    return -v if random.random() > 0.5 else v


def _affine(img, *matrix):
    return img.transform(img.size, Image.Transform.AFFINE, matrix)


def _solarize_add(img, v):
    brighter = (np.asarray(img, dtype=np.int64) + v).clip(0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(brighter), 128)


def _cutout(img, v):
    """Fills a square of side v; its centre is drawn between the pixel at 1 and the far end, as Dassl draws it."""
    centre = [np.random.uniform(side, 1) for side in img.size]
    start = [int(max(0, middle - v / 2)) for middle in centre]
    end = [min(side, first + v) for side, first in zip(img.size, start, strict=True)]
    img = img.copy()
    ImageDraw.Draw(img).rectangle((*start, *end), FILL)
    return img


# name -> (image, v) -> image
OPERATIONS = {
    "AutoContrast": lambda img, v: ImageOps.autocontrast(img),
    "Brightness": lambda img, v: ImageEnhance.Brightness(img).enhance(v),
    "Color": lambda img, v: ImageEnhance.Color(img).enhance(v),
    "Contrast": lambda img, v: ImageEnhance.Contrast(img).enhance(v),
    "Cutout": _cutout,
    "Equalize": lambda img, v: ImageOps.equalize(img),
    "Identity": lambda img, v: img,
    "Invert": lambda img, v: ImageOps.invert(img),
    "Posterize": lambda img, v: ImageOps.posterize(img, int(v)),
    "Rotate": lambda img, v: img.rotate(_either_sign(v)),
    "Sharpness": lambda img, v: ImageEnhance.Sharpness(img).enhance(v),
    "ShearX": lambda img, v: _affine(img, 1, _either_sign(v), 0, 0, 1, 0),
    "ShearY": lambda img, v: _affine(img, 1, 0, 0, _either_sign(v), 1, 0),
    "Solarize": lambda img, v: ImageOps.solarize(img, v),
    "SolarizeAdd": _solarize_add,
    "TranslateX": lambda img, v: _affine(img, 1, 0, _either_sign(v) * img.width, 0, 1, 0),
    "TranslateY": lambda img, v: _affine(img, 1, 0, 0, 0, 1, _either_sign(v) * img.height),
    "TranslateXabs": lambda img, v: _affine(img, 1, 0, _either_sign(v), 0, 1, 0),
    "TranslateYabs": lambda img, v: _affine(img, 1, 0, 0, 0, 1, _either_sign(v)),
}


# the policies' operations, each with its range: (name, low, high)
FIXMATCH = (
    ("AutoContrast", 0, 1), ("Brightness", 0.05, 0.95), ("Color", 0.05, 0.95), ("Contrast", 0.05, 0.95),
    ("Equalize", 0, 1), ("Identity", 0, 1), ("Posterize", 4, 8), ("Rotate", -30, 30), ("Sharpness", 0.05, 0.95),
    ("ShearX", -0.3, 0.3), ("ShearY", -0.3, 0.3), ("Solarize", 0, 256), ("TranslateX", -0.3, 0.3),
    ("TranslateY", -0.3, 0.3),
)  # fmt: skip
_WIDER = [(name, 0.1, 1.9) if high == 0.95 else (name, low, high) for name, low, high in FIXMATCH]
SECOND = (*_WIDER[:6], ("Invert", 0, 1), *_WIDER[6:])
FIRST = (
    ("AutoContrast", 0, 1), ("Equalize", 0, 1), ("Invert", 0, 1), ("Rotate", 0, 30), ("Posterize", 4, 8),
    ("Solarize", 0, 256), ("SolarizeAdd", 0, 110), ("Color", 0.1, 1.9), ("Contrast", 0.1, 1.9),
    ("Brightness", 0.1, 1.9), ("Sharpness", 0.1, 1.9), ("ShearX", 0, 0.3), ("ShearY", 0, 0.3), ("Cutout", 0, 40),
    ("TranslateXabs", 0, 100), ("TranslateYabs", 0, 100),
)  # fmt: skip


@dataclass(eq=False)
class RandAugmentFixMatch:
    """n operations, drawn with replacement, each at a random value (Sohn et al. 2020, arXiv 2001.07685)."""

    operations: ClassVar[tuple] = FIXMATCH
    n: int = 2

    def __call__(self, img: Image.Image) -> Image.Image:
        for name, low, high in random.choices(self.operations, k=self.n):
            share = self.magnitude()
            if share is not None:
                img = OPERATIONS[name](img, share * (high - low) + low)
        return img

    def magnitude(self) -> float | None:
        """Where in its range the next operation is, 0 to 1; None leaves it out."""
        return random.random()


@dataclass(eq=False)
class RandAugment(RandAugmentFixMatch):
    """n operations, all at m thirtieths of their ranges, 0 to 30."""

    operations = FIRST
    m: float = 10

    def magnitude(self) -> float:
        return self.m / 30


@dataclass(eq=False)
class RandAugment2(RandAugmentFixMatch):
    """n operations, each with probability p, at a random value of its range."""

    operations = SECOND
    p: float = 0.6

    def magnitude(self) -> float | None:
        return None if random.random() > self.p else random.random()
