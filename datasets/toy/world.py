"""The toy data sets: classes, how a class is drawn, style and strength, templates. One table, `WORLD`.

A data set's label order is the order of its classes: the first half are the base classes of the base-to-new
protocol, the second half the new ones. Composed classes are laid out so that each half has every kind of
part. Changing a class list changes what pretraining leaves out, and so the tiny CLIP's images.

`write_toy` draws one in CoOp's layout: ROOT/<folder>/images/<class>/NNNN.png, split_zhou_<Name>.json, and world.json,
what was drawn, and `world_digest`. It is written under a temporary name and renamed when whole; a lock beside it makes
a second process wait for the first. One with another world.json is replaced.
"""

import contextlib
import json
import shutil
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from dassl.utils import WriteFailed, digest, get_logger
from dassl.utils.files import atomic_folder, locked
from dassl.utils.progress import progress
from datasets.toy import images
from datasets.toy.draw import SHAPES, SIDE, TEXTURES, generator
from datasets.toy.images import DIGIT_WORDS, DIRECTIONS, NUMBERS, OTHER_FONTS, PLACES, SIZES, STYLES, finish
from datasets.toy.scenes import SCENES

SPLITS = ("train", "val", "test")
COUNTS = (20, 20, 50)  # images a class of each
VERSION = 1  # part of every image's seed


@dataclass(frozen=True)
class ToySet:
    """One data set. `draws`: class name -> (function of `images`, its arguments), in label order. `strength`: of its
    styles, from 0, that of pretraining, to 1; chosen by zero-shot CLIP and CoOp alone."""

    name: str
    folder: str
    draws: dict
    styles: tuple
    strength: float
    template: str
    base_to_new: bool = True
    extra: dict = field(default_factory=dict)

    @property
    def classnames(self) -> list[str]:
        return list(self.draws)

    def image(self, classname: str, split: str, number: int) -> np.ndarray:
        """uint8 (32, 32, 3), a function of the declaration, its arguments and VERSION alone."""
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


def plural(number: int, shape: str) -> str:
    """ "one star", "two stars", "three crosses"."""
    if number == 1:
        return f"one {shape}"
    return f"{NUMBERS[number - 1]} {shape}{'es' if shape.endswith('s') else 's'}"


_FIGURES = ("black", "blue", "green", "orange", "purple", "red", "white", "yellow")
_COLOURS = _halves(
    (f"{figure} on {ground}", step == 1, ("thing", {"colour": figure, "ground": ground}))
    for step in (1, 2) for figure, ground in zip(_FIGURES, _FIGURES[step:] + _FIGURES[:step], strict=True)
)  # fmt: skip
_COUNTS = _halves(
    (plural(n, shape), (n + i) % 2 == 0, ("counted", {"number": n, "shape": shape}))
    for n in range(1, 6) for i, shape in enumerate(("cross", "heart", "moon", "square"))
)  # fmt: skip
_SIZES = _halves(
    (f"{size} {shape}", (i + j) % 2 == 0, ("sized", {"size": size, "shape": shape}))
    for i, size in enumerate(SIZES)
    for j, shape in enumerate(("circle", "cross", "flower", "heart", "square", "star"))
)
_PAIRED = {
    True: (("circle", "cross"), ("cross", "circle"), ("heart", "hexagon")),
    False: (("square", "star"), ("star", "square"), ("triangle", "diamond")),
}
_PAIRS = _halves(
    (f"{first} {relation} {second}", base, ("paired", {"first": first, "relation": relation, "second": second}))
    for base, pairs in _PAIRED.items() for first, second in pairs for relation in ("above", "inside", "left of")
)  # fmt: skip
_TINTS = ("blue", "green", "orange", "purple", "red")
_OUTLINES = ("circle", "diamond", "heart", "square", "star")
_OBJECTS = _halves(  # twenty of the 125 triples; in each half every pattern, colour and shape stands twice
    (f"{pattern} {colour} {shape}", base, ("thing", {"pattern": pattern, "colour": colour, "shape": shape}))
    for base, shift in ((True, 0), (False, 2))
    for i, pattern in enumerate(("checkered", "dotted", "grid", "plain", "striped"))
    for j in (0, 1)
    for colour, shape in [(_TINTS[(i + 2 * j + shift) % 5], _OUTLINES[(2 * i + j + shift) % 5])]
)
_ARROWS = {f"arrow pointing {direction}": ("arrow", {"direction": direction}) for direction in DIRECTIONS}
_POSITIONS = {f"the {place}": ("placed", {"place": place}) for place in PLACES}
_LETTERS = {f"letter {c}": ("glyph", {"text": c.upper()}) for c in "abcdefghijklmnopqrstuvwxyz"}
_SCENES = {name: ("place", {"name": name}) for name in sorted(SCENES)}
_SHAPES = {name: ("thing", {"shape": name}) for name in sorted(SHAPES)}
_TEXTURES = {name: ("surface", {"pattern": name}) for name in sorted(TEXTURES)}
_GLYPHS = {f"number {word}": ("glyph", {"text": str(i)}) for i, word in enumerate(DIGIT_WORDS)}


@lru_cache(maxsize=1)
def _handwritten():
    """scikit-learn's handwritten digits: images (1797, 8, 8) in 0..16, and their labels. Its import takes a second."""
    folder = Path(str(find_spec("sklearn").origin)).parent
    rows = np.loadtxt(folder / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]


class RealDigits(ToySet):
    """Real images, enlarged: white on black, at least 174 of each digit, so the splits share none."""

    _first = {"test": 0, "train": 50, "val": 100}

    def image(self, classname: str, split: str, number: int) -> np.ndarray:
        digits, labels = _handwritten()
        places = np.flatnonzero(labels == self.draws[classname])
        order = generator(VERSION, self.name, classname).permutation(places)
        small = (digits[order[self._first[split] + number]] * (255 / 16)).astype(np.uint8)
        large = Image.fromarray(small).resize((SIDE - 4, SIDE - 4), Image.Resampling.BICUBIC)
        return np.pad(np.asarray(large)[..., None].repeat(3, 2), ((2, 2), (2, 2), (0, 0)))


WORLD = {
    toy.name: toy
    for toy in (
        ToySet("ToyArrows", "toy_arrows", _ARROWS, ("clutter", "noise"), 0.75, "a picture of an {}.",
               base_to_new=False),
        ToySet("ToyColours", "toy_colours", _COLOURS, ("tint", "noise"), 0.6, "a photo of a shape in {}.",
               extra={"pattern": None}),
        ToySet("ToyCounts", "toy_counts", _COUNTS, ("noise", "blur"), 0.45, "a photo of {}."),
        RealDigits("ToyDigits", "toy_digits", {word: i for i, word in enumerate(DIGIT_WORDS)}, (),
                   0.0, "a photo of the number {}."),
        ToySet("ToyLetters", "toy_letters", _LETTERS, ("blur", "noise"), 0.5, "a photo of the {}.",
               extra={"fonts": OTHER_FONTS, "tilt": 20}),
        ToySet("ToyNumbers", "toy_numbers", _GLYPHS, ("clutter", "blur"), 0.5, "a photo of the {}.",
               extra={"fonts": OTHER_FONTS, "tilt": 20}, base_to_new=False),
        ToySet("ToyObjects", "toy_objects", _OBJECTS, ("blur", "speckle"), 0.7,
               "a photo of a {}, a type of object."),
        ToySet("ToyPairs", "toy_pairs", _PAIRS, ("sketch", "noise"), 0.4, "a photo of a {}."),
        ToySet("ToyPositions", "toy_positions", _POSITIONS, ("dark", "noise"), 0.45, "a shape at {}.",
               base_to_new=False),
        ToySet("ToyScenes", "toy_scenes", _SCENES, ("sketch", "speckle"), 0.42,
               "a photo of a {}, a type of place."),
        ToySet("ToyShapes", "toy_shapes", _SHAPES, ("sketch", "rotation", "noise"), 0.55,
               "a photo of a {}, a type of shape.", extra={"pattern": None}),
        ToySet("ToySizes", "toy_sizes", _SIZES, ("clutter", "blur"), 0.5, "a photo of a {}."),
        ToySet("ToyTextures", "toy_textures", _TEXTURES, ("fade", "noise"), 0.35, "{} texture."),
    )
}  # fmt: skip


def write_toy(root: str | Path, toy: ToySet, counts: tuple[int, int, int] = COUNTS) -> Path:
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
        there, lists = split.read_bytes(), _lists(toy, counts)
        if there != json.dumps(lists).encode() and json.loads(there) != lists:
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
        stamp = stamp | {"pillow": PIL.__version__, "world": _drawn_digest()}
        (place / "world.json").write_text(json.dumps(stamp | {"check": digest(stamp)}, indent=1))
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


def world_digest(folder: str | Path = "") -> str:
    """BLAKE2 (16 hexadecimal digits) of the pixels of 20 test images that go round the data sets: which world this is.

    folder: of `write_toy`; what its world.json says, or else as it is drawn now.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # older ones say nothing
        stamp = json.loads((Path(folder) / "world.json").read_text())
        if stamp.pop("check") == digest(stamp):
            return stamp["world"]
    return _drawn_digest()


@lru_cache(maxsize=1)
def _drawn_digest():
    toys = sorted(WORLD.values(), key=lambda toy: toy.name)
    pixels = blake2b(digest_size=8)
    for i in range(20):
        toy = toys[i % len(toys)]
        pixels.update(toy.image(toy.classnames[(5 * i) % len(toy.classnames)], "test", i).tobytes())
    return pixels.hexdigest()
