"""Writes toy data sets in CoOp's layout and says which world they come from.

ROOT/<folder>/images/<class>/NNNN.png, ROOT/<folder>/split_zhou_<Name>.json with lists of [path, label, class
name], and world.json: what was drawn. A data set is written under a temporary name and renamed when whole; a
lock beside it makes a second process wait for the first. One with another world.json is replaced.
"""

import contextlib
import json
import shutil
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from dassl.utils import WriteFailed, get_logger
from dassl.utils.files import atomic_folder, locked
from dassl.utils.progress import progress
from datasets.toy.world import COUNTS, VERSION, WORLD

SPLITS = ("train", "val", "test")


def write_toy(root, toy, counts=COUNTS):
    """Write `toy` below `root` unless it is there; returns its folder.

    counts: pictures a class for train, val and test; the k-th picture of a class does not depend on them.
    WriteFailed: it is not there and cannot be written.
    """
    folder, stamp = Path(root) / toy.folder, _stamp(toy, counts)
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
    with atomic_folder(folder) as temporary:
        _draw(Path(temporary), toy, counts)
        Path(temporary, "world.json").write_text(json.dumps(stamp | {"pillow": PIL.__version__}, indent=1))
        (folder / "world.json").unlink(missing_ok=True)  # of another world, which is no longer whole
        shutil.rmtree(folder, ignore_errors=True)


def _draw(folder, toy, counts):
    lists = _lists(toy, counts)
    for split, items in lists.items():
        for index, (path, _, name) in enumerate(progress(items, f"drawing {toy.name}, {split}")):
            file = folder / "images" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(toy.picture(name, split, index % (len(items) // len(toy.classnames)))).save(file)
    (folder / f"split_zhou_{toy.name}.json").write_text(json.dumps(lists))


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
