"""Writes toy data sets in CoOp's layout and says which world they come from.

ROOT/<folder>/images/<class>/NNNN.png, ROOT/<folder>/split_zhou_<Name>.json with lists of [path, label, class
name], and world.json: what was drawn. A data set is written under a temporary name and renamed when whole; a
lock beside it makes a second process wait for the first. One with another world.json is replaced.
"""

import json
import shutil
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from dassl.utils.atomic import atomic_folder
from dassl.utils.lock import locked
from dassl.utils.progress import progress
from datasets.toy.world import COUNTS, VERSION, WORLD

SPLITS = ("train", "val", "test")


def write_toy(root, toy, counts=COUNTS):
    """Write `toy` below `root` unless it is there; returns its folder. Raises WriteFailed.

    counts: pictures a class for train, val and test; the k-th picture of a class does not depend on them.
    """
    folder, stamp = Path(root) / toy.folder, _stamp(toy, counts)
    if _is(folder, stamp):
        return folder
    with locked(folder.parent / f".{toy.folder}.lock", lambda _: None):  # another process draws: waited for
        if not _is(folder, stamp):
            with atomic_folder(folder) as temporary:
                _draw(Path(temporary), toy, counts)
                Path(temporary, "world.json").write_text(json.dumps(stamp | {"pillow": PIL.__version__}, indent=1))
                (folder / "world.json").unlink(missing_ok=True)  # of another world, which is no longer whole
                shutil.rmtree(folder, ignore_errors=True)
    return folder


def _draw(folder, toy, counts):
    parts = {}
    for split, count, first in zip(SPLITS, counts, np.cumsum([0, *counts]).tolist(), strict=False):
        parts[split] = []
        for label, name in enumerate(progress(toy.classnames, f"drawing {toy.name}, {split}")):
            place = name.replace(" ", "_")
            (folder / "images" / place).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                path = f"{place}/{first + number:04d}.png"
                Image.fromarray(toy.picture(name, split, number)).save(folder / "images" / path)
                parts[split].append([path, label, name])
    (folder / f"split_zhou_{toy.name}.json").write_text(json.dumps(parts))


def _stamp(toy, counts):
    return {"format": 1, "version": VERSION, "name": toy.name, "strength": toy.strength,
            "styles": list(toy.styles), "classes": toy.classnames, "counts": list(counts)}  # fmt: skip


def _is(folder, stamp):
    """Whether `folder` holds what the stamp says; the Pillow version in it is only a note."""
    try:
        return stamp.items() <= json.loads((folder / "world.json").read_text()).items()
    except (OSError, ValueError):
        return False


def sample_pictures(count=20):
    """`count` test pictures, uint8 (32, 32, 3) each, that go round the data sets."""
    toys = sorted(WORLD.values(), key=lambda toy: toy.name)
    for i in range(count):
        toy = toys[i % len(toys)]
        yield toy.picture(toy.classnames[(5 * i) % len(toy.classnames)], "test", i)


@lru_cache(maxsize=1)
def world_digest():
    """BLAKE2 (16 hexadecimal digits) of the pixels of 20 pictures: which world this is."""
    return blake2b(b"".join(picture.tobytes() for picture in sample_pictures()), digest_size=8).hexdigest()
