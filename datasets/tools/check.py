"""`python -m datasets check`: is what lies below the data root what the tables are made of?

Each set is read as a run would read it, which covers layout, lists and missing files; then come counts, the
digest of the split, the published draws, and images that cannot be decoded. What is wrong is compared with
the usual mistakes.
"""

import glob
import hashlib
import os
import random
from collections.abc import Iterator

from yacs.config import CfgNode

from dassl.config import get_cfg_default
from dassl.data import few_shot
from dassl.data.datasets import DATASET_REGISTRY, unreadable
from dassl.utils import UserError, listdir_nohidden
from datasets.base import MAX_VAL_SHOTS, FewShotDataset

from .known import KNOWN

SAMPLE = 64  # images a set that --decode sample opens
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2")
OK, PROBLEM, ABSENT = "ok", "problem", "not found"
COLUMNS = ("dataset", "folder", "split", "classes", "train", "val", "test", "missing", "unreadable", "status")


def settings(root: str, name: str) -> CfgNode:
    """The config of a data set, with all its images."""
    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.DATASET.NAME, cfg.VERBOSE = root, name, False
    return cfg


def check(name: str, root: str, decode: str = "sample", jobs: int = 4) -> dict:
    """What is said of one data set: COLUMNS (None: not reached, or nothing to count), lists `problems` and `notes`.

    decode: which images are opened, "none", "sample" or "all".
    """
    row = dict.fromkeys(COLUMNS) | {"dataset": name, "folder": "", "split": "", "problems": [], "notes": []}
    kind = DATASET_REGISTRY.get(name)
    data = kind.__new__(kind)
    try:
        with data.naming():
            folder = data.locate(root)
    except UserError as error:
        return row | {"status": ABSENT, "problems": [str(error), *mistakes(kind, root, "")]}
    row["folder"] = os.path.relpath(folder, root)
    if old := glob.glob(os.path.join(glob.escape(folder), "split_fewshot", "*.pkl")):
        row["notes"] = [f"split_fewshot has {len(old)} pickles that nothing reads; import-subset makes a subset of one"]
    try:
        data = kind(settings(root, name))
    except UserError as error:
        problems = [str(error), *mistakes(kind, root, folder)]
        return row | {"missing": getattr(error.__cause__, "count", None), "status": PROBLEM, "problems": problems}
    problems, split = data.unpublished(), "local" if data.is_local else "lists"
    if data.split_file and not data.is_local:
        split = "published" if KNOWN[name].split == data.split_digest else "as found"
    if not problems and (draws := KNOWN[name].draws) and draws != draws_digest(data):
        problems.append("the draws of seeds 1, 2 and 3 are not the published ones: lists of other content or order")
    if decode != "none":
        images = list({i.impath: i for items in (data.train_x, data.val or [], data.test) for i in items}.values())
        broken = unreadable(images[:: 1 if decode == "all" else max(1, len(images) // SAMPLE)], jobs)
        row["unreadable"] = len(broken)
        if broken:
            problems.append(f"{len(broken)} images cannot be read: {broken[0]}{', ...' * (len(broken) > 1)}")
    status = PROBLEM if problems else OK
    return row | data.sizes | {"missing": 0, "split": split, "status": status, "problems": problems}


def draws_digest(data: FewShotDataset) -> str:
    """SHA-256 (16 digits) of the draws of seeds 1, 2 and 3: of the digests, with blanks between, of the relative paths
    of 16 training and then of 4 validation images a class, joined by line feeds."""
    digests = []
    for seed in (1, 2, 3):
        rng = random.Random(seed)
        for items, shots in ((data.train_x, 16), (data.val, MAX_VAL_SHOTS)):
            digests.append(_sha256("\n".join(map(data.relative, few_shot(items, shots, rng)))))
    return _sha256(" ".join(digests))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def mistakes(kind: type[FewShotDataset], root: str, folder: str) -> Iterator[str]:
    """What may have gone wrong with a data set that cannot be read; `folder` is "" if it was not found."""
    stems = [plain(os.path.basename(name)) for name in (*kind.folders, *kind.images) if name]
    for place in filter(os.path.isdir, (root, folder)):
        names = listdir_nohidden(place, sort=True)
        archives = [name for name in names if name.lower().endswith(ARCHIVES)]
        if place == root:  # where others' lie too
            archives = [name for name in archives if any(stem in plain(name) for stem in stems)]
        if archives:
            yield f"{', '.join(archives)} in {place} may not be unpacked"
        if not folder:
            alike = [name for name in names if name.lower() in map(str.lower, kind.folders)]
            yield from (f"{name} is spelt otherwise: rename it to {kind.folders[0]}" for name in alike)
    for name in listdir_nohidden(folder, sort=True) if folder else ():
        if os.path.isdir(os.path.join(folder, name, name)):
            yield f"{name}/{name} is one folder too many: move its content up"
        for file in filter(None, (kind.split_file, "variants.txt", "classnames.txt", "ClassName.txt")):
            if os.path.isfile(os.path.join(folder, name, file)) and not os.path.isfile(os.path.join(folder, file)):
                yield f"{file} lies in {name}/: move the content of that folder up"


def plain(name: str) -> str:
    """Letters and digits in lower case."""
    return "".join(c for c in name.lower() if c.isalnum())


def table(rows: list[dict]) -> list[str]:
    """The lines of the table, and below it what is wrong with whom."""
    cells = [COLUMNS] + [tuple(_cell(row[key]) for key in COLUMNS) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = [str.ljust if key in ("dataset", "folder", "split", "status") else str.rjust for key in COLUMNS]
    lines = ["  ".join(side(*cell) for side, *cell in zip(sides, line, widths, strict=True)).rstrip() for line in cells]
    for row in rows:
        name, problems = row["dataset"], row["problems"]
        said = problems + row["notes"] if row["status"] != ABSENT else problems[1:]
        lines += [f"{name}: {text.removeprefix(f'{name}: ')}" for text in said]
    return lines


def _cell(value: object) -> str:
    return "-" if value in (None, "") else f"{value:,}" if isinstance(value, int) else str(value)
