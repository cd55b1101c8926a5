"""`python -m datasets import-subset`: a few-shot draw that another program pickled, as a file for --subset.

Such a pickle (split_fewshot/shot_16-seed_1.pkl) holds objects with absolute paths of the machine that wrote it.
It is read without running anything in it; every path, label and class name has to be in this machine's lists.
ImageNet's draws followed the order of a file system, so this is the only way to have one again.
"""

import os
import re
from collections import Counter
from types import SimpleNamespace

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import UserError, check_file, load_plain_pickle, write_json

from ..base import SUBSET_FORMAT
from .check import settings

MAX_BYTES = 1 << 30  # 1.3 million records take about 0.2 GB
CLASSES = {("dassl.data.datasets.base_dataset", "Datum"): SimpleNamespace}  # has _impath, _label and _classname


def import_subset(file: str, name: str, root: str, out: str, shots: int = 0, seed: int = -1) -> dict:
    """Write `out`, which it returns. shots, seed: taken from the file's name where they are not given.

    UserError: no such pickle, or one whose images are not those of the data set below `root`.
    """
    check_file(file, MAX_BYTES)
    named = re.search(r"shot_(\d+)-seed_(-?\d+)", os.path.basename(file))
    shots, seed = shots or (int(named[1]) if named else 0), seed if seed >= 0 or not named else int(named[2])
    if shots < 1:
        raise UserError(f"{file}: its name does not say how many shots it has; give --shots")
    tree = load_plain_pickle(file, CLASSES)
    if not isinstance(tree, dict) or not isinstance(tree.get("train"), list):
        raise UserError(f"{file} holds no few-shot draw: expected a dictionary with a list train")
    data = DATASET_REGISTRY.get(name)(settings(root, name))
    drawn = data.drawn | {"format": SUBSET_FORMAT, "shots": shots, "seed": seed, "sampler": "imported"}
    drawn["train"] = matched(tree["train"], data, data.train_x, f"{file}: train")
    if data.has_val and isinstance(tree.get("val"), list):
        drawn["val"] = matched(tree["val"], data, data.val, f"{file}: val")
    most = max(Counter(item._label for item in tree["train"]).values(), default=0)
    if most > shots:
        raise UserError(f"{file} has {most} images of a class, more than {shots} shots")
    write_json(drawn, out)
    return drawn


def matched(records: list, data, items: list[Datum], where: str) -> list[str]:
    """The relative path of each record: the longest end of its path that the list has, with its label and name."""
    by_path = {data.relative(item): item for item in items}
    paths = []
    for record in records:
        path, label, name = (getattr(record, key, None) for key in ("_impath", "_label", "_classname"))
        if not isinstance(record, SimpleNamespace) or not isinstance(path, str):
            raise UserError(f"{where} holds {type(record).__name__} objects, expected records of images")
        parts = path.replace("\\", "/").split("/")
        ends = ("/".join(parts[i:]) for i in range(len(parts)))
        key = next((end for end in ends if end in by_path), None)
        if key is None:
            raise UserError(f"{where}: {path} is not in the list of {data.image_dir}")
        item = by_path[key]
        if (item.label, item.classname) != (label, name):
            here = f"{item.classname!r}, label {item.label}"
            raise UserError(f"{where}: {key} is {name!r}, label {label}, but here {here}")
        paths.append(key)
    return paths
