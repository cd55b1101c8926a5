"""The toy data sets: classes, how a class is drawn, style and strength, templates. One table, `WORLD`.

A data set's label order is the order of its classes: the first half are the base classes of the base-to-new
protocol, the second half the new ones. Composed classes are laid out so that each half has every kind of
part. Changing a class list changes what pretraining leaves out, and so the tiny CLIP's images.

`write_toy` draws one in CoOp's layout: ROOT/<folder>/images/<class>/NNNN.png, split_zhou_<Name>.json, and world.json,
what was drawn. It is written under a temporary name and renamed when whole; a lock beside it makes a second process
wait for the first. One with another world.json is replaced.
"""

import contextlib
import json
import shutil
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from dassl.utils import WriteFailed, get_logger
from dassl.utils.files import atomic_folder, locked
from dassl.utils.progress import progress
from datasets.toy import images
from datasets.toy.draw import SHAPES, SIDE, TEXTURES, generator
from datasets.toy.images import DIGIT_WORDS, DIRECTIONS, NUMBERS, OTHER_FONTS, PLACES, SIZES, STYLES, finish
from datasets.toy.scenes import SCENES

SPLITS = ("train", "val", "test")
COUNTS = (20, 20, 50)  # images a class of each
VERSION = 1  # part of every image's seed

# One number for each data set, 0 (the pretraining style) to 1; chosen by zero-shot CLIP and CoOp alone. Those of the
# four last, which are ToyObjects in other styles, before any training was looked at: the multiple of 0.05 whose
# zero-shot accuracy on the 400 validation images is nearest 35 %. Chance is 5 %, ToyObjects itself has 45.0 %, and they
# have 33.0, 36.0, 31.0 and 35.0.
STRENGTHS = {
    "ToyArrows": 0.75,
    "ToyColours": 0.6,
    "ToyCounts": 0.45,
    "ToyDigits": 0.0,
    "ToyLetters": 0.5,
    "ToyNumbers": 0.5,
    "ToyObjects": 0.7,
    "ToyPairs": 0.4,
    "ToyPositions": 0.45,
    "ToyScenes": 0.42,
    "ToyShapes": 0.55,
    "ToySizes": 0.5,
    "ToyTextures": 0.35,
    "ToyDGNoise": 0.5,
    "ToyDGPixelate": 0.9,
    "ToyDGSketch": 0.9,
    "ToyObjectsSketch": 0.7,
    "ToyObjectsNoise": 0.65,
    "ToyObjectsDark": 0.6,
    "ToyObjectsRotation": 0.9,
}


@dataclass(frozen=True)
class ToySet:
    """One data set. `draws`: class name -> (function of `images`, its arguments), in label order."""

    name: str
    folder: str
    draws: dict
    styles: tuple
    template: str
    coop_template: str = "a photo of a {}."
    base_to_new: bool = True
    extra: dict = field(default_factory=dict)

    @property
    def classnames(self):
        return list(self.draws)

    @property
    def strength(self):
        return STRENGTHS.get(self.name, 0.0)

    def image(self, classname, split, number):
        """uint8 (32, 32, 3), a function of its arguments, STRENGTHS and VERSION alone."""
        rng = generator(VERSION, self.name, classname, split, number)
        function, arguments = self.draws[classname]
        image = getattr(images, function)(rng, **arguments, **self.extra)
        for style in self.styles:
            image = STYLES[style](rng, image, self.strength)
        return finish(image)


def _halves(pairs):
    """Order classes (name, in_base, draw): base first, each half alphabetically."""
    chosen = sorted(pairs, key=lambda entry: (not entry[1], entry[0]))
    return {name: draw for name, _, draw in chosen}


def plural(number, shape):
    """ "one star", "two stars", "three crosses"."""
    if number == 1:
        return f"one {shape}"
    return f"{NUMBERS[number - 1]} {shape}{'es' if shape.endswith('s') else 's'}"


_FIGURES = ("black", "blue", "green", "orange", "purple", "red", "white", "yellow")
_COUNTED = ("cross", "heart", "moon", "square")
_SIZED = ("circle", "cross", "flower", "heart", "square", "star")
_PAIRS = {
    True: (("circle", "cross"), ("cross", "circle"), ("heart", "hexagon")),
    False: (("square", "star"), ("star", "square"), ("triangle", "diamond")),
}
_PATTERNS = ("checkered", "dotted", "grid", "plain", "striped")
_TINTS = ("blue", "green", "orange", "purple", "red")
_OUTLINES = ("circle", "diamond", "heart", "square", "star")


def _colours():
    n = len(_FIGURES)
    return _halves(
        (f"{figure} on {_FIGURES[(i + step) % n]}", step == 1,
         ("thing", {"colour": figure, "ground": _FIGURES[(i + step) % n]}))
        for i, figure in enumerate(_FIGURES) for step in (1, 2)
    )  # fmt: skip


def _counts():
    return _halves(
        (plural(n, shape), (n + i) % 2 == 0, ("counted", {"number": n, "shape": shape}))
        for n in range(1, 6) for i, shape in enumerate(_COUNTED)
    )  # fmt: skip


def _sizes():
    return _halves(
        (f"{size} {shape}", (i + j) % 2 == 0, ("sized", {"size": size, "shape": shape}))
        for i, size in enumerate(SIZES) for j, shape in enumerate(_SIZED)
    )  # fmt: skip


def _pairs():
    return _halves(
        (f"{first} {relation} {second}", base,
         ("paired", {"first": first, "relation": relation, "second": second}))
        for base, pairs in _PAIRS.items() for first, second in pairs
        for relation in ("above", "inside", "left of")
    )  # fmt: skip


def _objects():
    """Twenty of the 125 triples; in each half every pattern, colour and shape stands twice."""
    classes = []
    for base, shift in ((True, 0), (False, 2)):
        for i, pattern in enumerate(_PATTERNS):
            for j in (0, 1):
                colour, shape = _TINTS[(i + 2 * j + shift) % 5], _OUTLINES[(2 * i + j + shift) % 5]
                draw = ("thing", {"pattern": pattern, "colour": colour, "shape": shape})
                classes.append((f"{pattern} {colour} {shape}", base, draw))
    return _halves(classes)


def _plain_halves(names, draw):
    """Alphabetical order, cut in the middle."""
    return {name: draw(name) for name in sorted(names)}


_ARROWS = {f"arrow pointing {direction}": ("arrow", {"direction": direction}) for direction in DIRECTIONS}
_POSITIONS = {f"the {place}": ("placed", {"place": place}) for place in PLACES}
_LETTERS = {f"letter {c}": ("glyph", {"text": c.upper()}) for c in "abcdefghijklmnopqrstuvwxyz"}
_GLYPHS = {f"number {word}": ("glyph", {"text": str(i)}) for i, word in enumerate(DIGIT_WORDS)}


@lru_cache(maxsize=1)
def _handwritten():
    """scikit-learn's handwritten digits: (1797, 8, 8) in 0..16, and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images, data.target


class RealDigits(ToySet):
    """Real images, enlarged: white on black, at least 174 of each digit, so the splits share none."""

    _first = {"test": 0, "train": 50, "val": 100}

    def image(self, classname, split, number):
        images, labels = _handwritten()
        places = np.flatnonzero(labels == self.draws[classname])
        order = generator(VERSION, self.name, classname).permutation(places)
        small = (images[order[self._first[split] + number]] * (255 / 16)).astype(np.uint8)
        large = Image.fromarray(small).resize((SIDE - 4, SIDE - 4), Image.Resampling.BICUBIC)
        return np.pad(np.asarray(large)[..., None].repeat(3, 2), ((2, 2), (2, 2), (0, 0)))


WORLD = {
    toy.name: toy
    for toy in (
        ToySet("ToyArrows", "toy_arrows", _ARROWS, ("clutter", "noise"), "a picture of an {}.",
               base_to_new=False),
        ToySet("ToyColours", "toy_colours", _colours(), ("tint", "noise"), "a photo of a shape in {}.",
               extra={"pattern": None}),
        ToySet("ToyCounts", "toy_counts", _counts(), ("noise", "blur"), "a photo of {}."),
        RealDigits("ToyDigits", "toy_digits", {word: i for i, word in enumerate(DIGIT_WORDS)}, (),
                   "a photo of the number {}."),
        ToySet("ToyLetters", "toy_letters", _LETTERS, ("blur", "noise"), "a photo of the {}.",
               extra={"fonts": OTHER_FONTS, "tilt": 20}),
        ToySet("ToyNumbers", "toy_numbers", _GLYPHS, ("clutter", "blur"), "a photo of the {}.",
               extra={"fonts": OTHER_FONTS, "tilt": 20}, base_to_new=False),
        ToySet("ToyObjects", "toy_objects", _objects(), ("blur", "speckle"),
               "a photo of a {}, a type of object."),
        ToySet("ToyPairs", "toy_pairs", _pairs(), ("sketch", "noise"), "a photo of a {}."),
        ToySet("ToyPositions", "toy_positions", _POSITIONS, ("dark", "noise"), "a shape at {}.",
               base_to_new=False),
        ToySet("ToyScenes", "toy_scenes", _plain_halves(SCENES, lambda s: ("place", {"name": s})),
               ("sketch", "speckle"), "a photo of a {}, a type of place."),
        ToySet("ToyShapes", "toy_shapes", _plain_halves(SHAPES, lambda s: ("thing", {"shape": s})),
               ("sketch", "rotation", "noise"), "a photo of a {}, a type of shape.", extra={"pattern": None}),
        ToySet("ToySizes", "toy_sizes", _sizes(), ("clutter", "blur"), "a photo of a {}."),
        ToySet("ToyTextures", "toy_textures", _plain_halves(TEXTURES, lambda t: ("surface", {"pattern": t})),
               ("fade", "noise"), "{} texture."),
    )
}  # fmt: skip


def write_toy(root, toy, counts=COUNTS):
    """Write `toy` below `root` unless it is there; returns its folder.

    counts: images a class for train, val and test; the k-th image of a class does not depend on them.
    WriteFailed: it is not there and cannot be written.
    """
    folder = Path(root) / toy.folder
    stamp = {"format": 1, "version": VERSION, "name": toy.name, "strength": toy.strength, "styles": list(toy.styles)}
    stamp |= {"classes": toy.classnames, "counts": list(counts)}
    try:
        if not _is(folder, stamp):
            with locked(folder.parent / f".{toy.folder}.lock", lambda: None):  # another process draws: waited for
                if not _is(folder, stamp):
                    _write(folder, toy, counts, stamp)
    except (OSError, WriteFailed) as error:
        raise WriteFailed(
            f'{toy.name} is not in "{folder.parent}" and cannot be drawn there ({error}): '
            "DATA, --data or --root names a folder that has it, or that can be written to"
        ) from error
    split = folder / f"split_zhou_{toy.name}.json"
    with contextlib.suppress(OSError, ValueError):  # said by who reads it
        if json.loads(split.read_bytes()) != _lists(toy, counts):
            get_logger().warning(f"{split} is not the benchmark's: remove {folder}, and it is drawn again")
    return folder


def _write(folder, toy, counts, stamp):
    lists = _lists(toy, counts)
    with atomic_folder(folder) as temporary:
        place = Path(temporary)
        for split, items in lists.items():
            for index, (path, _, name) in enumerate(progress(items, f"drawing {toy.name}, {split}")):
                (place / "images" / path).parent.mkdir(parents=True, exist_ok=True)
                image = toy.image(name, split, index % (len(items) // len(toy.classnames)))
                Image.fromarray(image).save(place / "images" / path)
        (place / f"split_zhou_{toy.name}.json").write_text(json.dumps(lists))
        (place / "world.json").write_text(json.dumps(stamp | {"pillow": PIL.__version__}, indent=1))
        (folder / "world.json").unlink(missing_ok=True)  # of another world, which is no longer whole
        shutil.rmtree(folder, ignore_errors=True)


def _lists(toy, counts):
    """The split file's content: {part: [[path, label, class name], ...]}."""
    starts = np.cumsum([0, *counts]).tolist()
    return {
        split: [
            [f"{name.replace(' ', '_')}/{number:04d}.png", label, name]
            for label, name in enumerate(toy.classnames)
            for number in range(start, start + count)
        ]
        for split, start, count in zip(SPLITS, starts, counts, strict=False)
    }


def _is(folder, stamp):
    """Whether `folder` holds what the stamp says; the Pillow version in it is only a note."""
    try:
        return stamp.items() <= json.loads((folder / "world.json").read_text()).items()
    except (OSError, ValueError):
        return False


@lru_cache(maxsize=1)
def world_digest():
    """BLAKE2 (16 hexadecimal digits) of the pixels of 20 test images that go round the data sets: which world this
    is."""
    toys = sorted(WORLD.values(), key=lambda toy: toy.name)
    digest = blake2b(digest_size=8)
    for i in range(20):
        toy = toys[i % len(toys)]
        digest.update(toy.image(toy.classnames[(5 * i) % len(toy.classnames)], "test", i).tobytes())
    return digest.hexdigest()
