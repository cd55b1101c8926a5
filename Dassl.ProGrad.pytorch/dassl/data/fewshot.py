"""Few-shot draws and the base/new cut, as pure functions.

The draw is CoOp's (Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022), reproduced to
the item: classes in order of first appearance, `sample` within each, from one stream for training and then
validation images. The cut is CoCoOp's (Zhou et al., CVPR 2022): sorted labels, the first half rounded up is
"base", the rest "new".

An item is anything with `label` (int) and `classname` (str), such as a Datum.
"""

import random
from collections.abc import Iterable, Sequence
from types import ModuleType

from dassl.utils import UserError

SUBSETS = ("all", "base", "new")


def group_indices(keys: Iterable) -> dict:
    """{key: indices with that key}, keys in order of first appearance."""
    groups = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return groups


def few_shot(items: Sequence, k: int, rng: random.Random | ModuleType = random, short: str = "all") -> list:
    """k items of each class, class after class, in the order drawn; all items if k < 1.

    rng: the module random or a random.Random. short: what to do with a class of fewer than k items: "all" takes them
    all without a draw, "repeat" draws k with replacement, "refuse" raises UserError that names such classes.
    """
    if k < 1:
        return list(items)
    if short == "refuse":
        _refuse_short(items, k)
    picked = []
    for indices in group_indices(item.label for item in items).values():
        if len(indices) >= k:
            picked += rng.sample(indices, k)
        elif short == "repeat":
            picked += rng.choices(indices, k=k)
        else:
            picked += indices
    return [items[i] for i in picked]


def _refuse_short(items: Sequence, k: int) -> None:
    groups = group_indices([item.label for item in items])
    short = [(items[g[0]].classname, len(g)) for g in groups.values() if len(g) < k]
    if short:
        named = ", ".join(f"{name} ({count})" for name, count in short[:5])
        more = ", ..." if len(short) > 5 else ""
        raise UserError(
            f"{k} shots asked for, but {len(short)} of {len(groups)} classes have fewer training images: "
            f"{named}{more}. At most {min(n for _, n in short)} shots are possible (DATASET.NUM_SHOTS); "
            "DATASET.FEWER_SHOTS take takes what there is."
        )


def subsample_classes(*sources: list, subset: str = "all") -> list | tuple[list, ...]:
    """The lists cut to one half of the classes and relabelled 0, 1, ... in label order; "all": as they are.

    The classes are those of the first list. An odd count gives base one more. Returns one list for one
    source, else a tuple of lists.
    """
    if subset not in SUBSETS:
        raise UserError(f"DATASET.SUBSAMPLE_CLASSES is one of {', '.join(SUBSETS)}, but got {subset!r}")
    if subset != "all":
        labels = sorted({item.label for item in sources[0]})
        half = (len(labels) + 1) // 2
        chosen = labels[:half] if subset == "base" else labels[half:]
        if not chosen:
            raise UserError(f"DATASET.SUBSAMPLE_CLASSES {subset}: there are {len(labels)} classes, this half has none")
        new_label = {label: i for i, label in enumerate(chosen)}
        sources = tuple(
            [item.relabelled(new_label[item.label]) for item in source if item.label in new_label] for source in sources
        )
    return sources[0] if len(sources) == 1 else sources
