"""Pretraining images with captions of their attributes.

Image i of a seed is a function of (VERSION, seed, i) alone; it has CAPTIONS captions of different detail and wording.
Combinations that stand in the data sets (`held_out`) are never drawn. About one image in six is mildly degraded, and
most captions of it name the style.
"""

from functools import cache

import numpy as np

from datasets.toy import images
from datasets.toy.draw import COLOURS, SHAPES, TEXTURES, generator
from datasets.toy.images import DIGIT_WORDS, DIRECTIONS, NUMBERS, PLACES, SIZES, STYLES, far, finish, noise, pick
from datasets.toy.scenes import SCENES
from datasets.toy.world import WORLD, plural

VERSION = 1
CAPTIONS = 4
DEGRADED = 0.17

_STYLE_WORDS = {
    "blur": ("blurry", "blurred"), "clutter": ("cluttered", "messy"), "dark": ("dark", "dim"),
    "fade": ("faded", "pale"), "invert": ("inverted", "negative"), "noise": ("noisy", "bad"),
    "occlude": ("covered", "occluded"), "pixelate": ("pixelated", "coarse"),
    "rotation": ("rotated", "turned"), "sketch": ("sketched", "pencil"),
    "speckle": ("speckled", "dirty"), "tint": ("tinted", "colored"),
}  # fmt: skip
_PLAIN = (
    ("{}", 20), ("a {}", 8), ("a photo of a {}", 24), ("a photo of {}", 8), ("a picture of a {}", 8),
    ("an image of a {}", 6), ("this is a {}", 4), ("a drawing of a {}", 4), ("a photo of the {}", 4),
    ("there is a {} in the picture", 2), ("the {}", 3), ("an image of {}", 2), ("a picture of {}", 3),
    ("a good photo of a {}", 1), ("a close up photo of a {}", 1), ("a centered satellite photo of {}", 1),
    ("a cropped photo of the {}", 1), ("art of the {}", 1), ("a {} in a video game", 1), ("itap of a {}", 1),
    ("a photo of my {}", 1), ("a photo of one {}", 1), ("a rendering of a {}", 1),
    ("a clean photo of a {}", 2),
    ("a photo of a {}, a type of {noun}", 6), ("a {}, a type of {noun}", 2),
    ("a photo of a person doing {}", 0.3),
    ("a photo of a {}, a type of pet", 0.3), ("a photo of a {}, a type of flower", 0.3),
    ("a photo of a {}, a type of aircraft", 0.3), ("a photo of {}, a type of food", 0.3),
)  # fmt: skip
_STYLED = (
    ("a {style} photo of a {}", 10), ("a {style} picture of a {}", 6), ("a {style} image of {}", 4),
    ("a {style} drawing of a {}", 4), ("a {style} {}", 4), ("{style} {}", 2), ("a photo of a {}, {style}", 2),
    ("this is a {style} photo of a {}", 1),
)  # fmt: skip
_SKETCHED = (
    ("a sketch of a {}", 8), ("a pencil sketch of a {}", 4), ("sketch of {}", 3), ("a line drawing of a {}", 3),
)  # fmt: skip
_SIZE_WORDS = {"small": ("tiny", "little"), "medium": ("medium sized", "middle sized"), "large": ("big", "huge")}
_TILTED = ("cross", "heart", "oval", "square", "triangle")
_FLIPPED = ("cloud", "heart", "pentagon", "triangle")
_UNCOUNTED = ("circle", "diamond", "star", "triangle")  # shapes that are never shown in numbers


def _weighted(rng, table):
    weights = np.array([weight for _, weight in table])
    return table[int(rng.choice(len(table), p=weights / weights.sum()))][0]


# ---- kinds of image: (function of `images`, arguments, phrases, what it is a type of), or None ---------


def _thing(rng):
    shape, colour = pick(rng, SHAPES), pick(rng, COLOURS)
    pattern = "plain" if rng.random() < 0.45 else pick(rng, TEXTURES)
    arguments = {"shape": shape, "colour": colour, "pattern": pattern}
    phrases = [f"{colour} {shape}", f"{pattern} {colour} {shape}", f"{pattern} {shape}", shape,
               f"{pattern} {colour} {shape}"]  # fmt: skip
    if rng.random() < 0.4:
        arguments["ground"] = ground = pick(rng, [name for name in sorted(COLOURS) if name != colour])
        if not far(COLOURS[ground], COLOURS[colour]):
            return None
        phrases += [f"{colour} on {ground}", f"{shape} in {colour} on {ground}",
                    f"{colour} {shape} on {ground}", f"{shape} on a {ground} background",
                    f"{colour} shape on {ground}"]  # fmt: skip
    return "thing", arguments, phrases, pick(rng, ("shape", "object"))


def _counted(rng):
    number, shape, colour = int(rng.integers(1, 6)), pick(rng, SHAPES), pick(rng, COLOURS)
    name = plural(number, shape)
    word, rest = name.split(" ", 1)
    phrases = [name, name, f"{word} {colour} {rest}", f"{word} {colour} {rest}", f"{number} {rest}"]
    return "counted", {"number": number, "shape": shape, "colour": colour}, phrases, pick(rng, ("group", "object"))


def _paired(rng):
    first, second = rng.permutation(sorted(SHAPES))[:2].tolist()
    relation = pick(rng, ("above", "inside", "left of"))
    if relation == "inside" and second in ("bolt", "moon", "ring", "arrow"):
        return None  # too thin to hold another shape
    other = {"above": "below", "inside": "around", "left of": "right of"}[relation]
    phrases = [f"{first} {relation} {second}", f"{second} {other} {first}", f"{first} {relation} a {second}"]
    if relation == "above":
        phrases += [f"{first} over {second}", f"{second} under a {first}"]
    elif relation == "left of":
        phrases += [f"{first} to the left of a {second}", f"{second} to the right of a {first}"]
    else:
        phrases += [f"{first} in a {second}", f"{second} with a {first} inside"]
    return "paired", {"first": first, "relation": relation, "second": second}, phrases, "pair"


def _placed(rng):
    place, shape, colour = pick(rng, PLACES), pick(rng, SHAPES), pick(rng, COLOURS)
    word = place if place != "center" else pick(rng, ("center", "centre", "middle"))
    phrases = [f"{shape} at the {word}", f"{colour} {shape} at the {word}", f"shape at the {word}",
               f"object in the {word}", f"{word}", f"{shape} {word}"]  # fmt: skip
    return "placed", {"place": place, "shape": shape, "colour": colour}, phrases, pick(rng, ("position", "shape"))


def _sized(rng):
    size, shape, colour = pick(rng, SIZES), pick(rng, SHAPES), pick(rng, COLOURS)
    word = pick(rng, _SIZE_WORDS[size])
    phrases = [f"{size} {shape}", f"{size} {shape}", f"{size} {colour} {shape}", f"{word} {shape}"]
    return "sized", {"size": size, "shape": shape, "colour": colour}, phrases, pick(rng, ("shape", "size"))


def _turned(rng):
    if rng.random() < 0.7:
        direction, colour = pick(rng, DIRECTIONS), pick(rng, COLOURS)
        phrases = [f"arrow pointing {direction}", f"{colour} arrow pointing {direction}",
                   f"arrow that points {direction}", f"arrow to the {direction}"]  # fmt: skip
        return "arrow", {"direction": direction, "colour": colour}, phrases, "direction"
    tilted, colour = rng.random() < 0.5, pick(rng, COLOURS)
    shape, angle = (pick(rng, _TILTED), pick(rng, (-40, 40))) if tilted else (pick(rng, _FLIPPED), 180)
    word = "tilted" if tilted else "upside down"
    arguments = {"shape": shape, "colour": colour, "angle": angle}
    return "thing", arguments, [f"{word} {shape}", f"{word} {colour} {shape}"], "shape"


def _letter(rng):
    letter, colour = pick(rng, "abcdefghijklmnopqrstuvwxyz"), pick(rng, COLOURS)
    phrases = [f"letter {letter}", f"letter {letter}", f"{colour} letter {letter}",
               f"capital letter {letter}", f"capital {letter}", letter, f"{letter} in {colour}"]  # fmt: skip
    return "glyph", {"text": letter.upper(), "colour": colour}, phrases, "letter"


def _number(rng):
    digit, colour = int(rng.integers(10)), pick(rng, COLOURS)
    word = DIGIT_WORDS[digit]
    phrases = [f"number {word}", f"digit {word}", f"number {digit}", f"{colour} number {word}", word, f"digit {digit}"]
    return "glyph", {"text": str(digit), "colour": colour}, phrases, pick(rng, ("number", "digit"))


def _surface(rng):
    pattern, colour = pick(rng, TEXTURES), pick(rng, COLOURS)
    phrases = [f"{pattern} texture", f"{pattern} pattern", f"{colour} {pattern} texture", f"{pattern} surface", pattern]
    arguments = {"pattern": pattern, "colour": colour}
    if rng.random() < 0.4 and pattern != "plain":
        arguments["other"] = other = pick(rng, COLOURS)
        if not far(COLOURS[other], COLOURS[colour]):
            return None
        phrases += [f"{colour} and {other} {pattern} texture", f"{pattern} in {colour} and {other}"]
    return "surface", arguments, phrases, pick(rng, ("texture", "pattern"))


def _place(rng):
    name = pick(rng, SCENES)
    phrases = [name, name, f"{name} scene", f"view of a {name}", f"landscape with a {name}"]
    return "place", {"name": name}, phrases, pick(rng, ("place", "scene"))


_KINDS = ((_thing, 30), (_counted, 12), (_paired, 13), (_placed, 7), (_sized, 7), (_turned, 5), (_letter, 12),
          (_number, 6), (_surface, 6), (_place, 7))  # fmt: skip


def _captions(rng, phrases, noun, style):
    for _ in range(CAPTIONS):
        phrase = pick(rng, phrases)
        wrapper = _weighted(rng, _PLAIN)
        if style is not None and rng.random() < 0.7:
            wrapper = _weighted(rng, _SKETCHED if style == "sketch" and rng.random() < 0.6 else _STYLED)
        words = pick(rng, _STYLE_WORDS[style]) if style else ""
        yield wrapper.format(phrase, noun=noun, style=words) + ("." if rng.random() < 0.5 else "")


@cache
def held_out() -> set[frozenset]:
    """What no image may show together: a set of frozensets of (argument, value) pairs.

    Of counts it leaves out whole shapes, and the data set counts others: "stars" would be a word it never met.
    """
    composed = ("ToyColours", "ToyObjects", "ToyPairs", "ToySizes")
    classes = {frozenset(arguments.items()) for name in composed for _, arguments in WORLD[name].draws.values()}
    counts = ({"number": n, "shape": shape} for n in range(1, len(NUMBERS) + 1) for shape in _UNCOUNTED)
    return classes | {frozenset(arguments.items()) for arguments in counts}


@cache
def example(seed: int, index: int) -> tuple[np.ndarray, list[str]]:
    """(image uint8 (32, 32, 3), captions)."""
    rng = generator("pretrain", VERSION, seed, index)
    while True:
        drawn = _weighted(rng, _KINDS)(rng)
        if drawn is not None and not any(combination <= set(drawn[1].items()) for combination in held_out()):
            break
    function, arguments, phrases, noun = drawn
    image = getattr(images, function)(rng, **arguments)
    style = pick(rng, STYLES) if rng.random() < DEGRADED else None
    if style is not None:
        image = STYLES[style](rng, image, rng.uniform(0.08, 0.4))
    image = noise(rng, image, rng.uniform(0, 0.05))
    return finish(image), list(_captions(rng, phrases, noun, style))
