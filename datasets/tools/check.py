"""`python -m datasets check`: is what lies below the data root what the tables are made of?

Each set is read as a run would read it, which covers layout, lists and missing files; then come counts, the
digest of the split, the published draws, and images that cannot be decoded. What is wrong is compared with
the usual mistakes.
"""

import hashlib
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

from yacs.config import CfgNode

from dassl.data import few_shot
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, unreadable
from dassl.utils import UserError, closest
from datasets.base import MAX_VAL_SHOTS

from .known import DRAW_SHOTS, KNOWN, not_published, published_draws

SAMPLE = 64  # images a set that --decode sample opens
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2")
OK, PROBLEM, ABSENT = "ok", "problem", "not found"
Count = int | None


@dataclass
class Row:
    """What is said of one data set. None: not reached, or nothing to count."""

    dataset: str
    folder: str = ""
    split: str = ""  # published, local, official lists or other
    classes: Count = None
    train: Count = None
    val: Count = None
    test: Count = None
    missing: Count = None
    unreadable: Count = None
    status: str = OK
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        self.problems.append(text)
        self.status = PROBLEM


def settings(root: str, name: str) -> SimpleNamespace:
    """As much of a config as a data set reads: all its images."""
    data = {"ROOT": root, "NAME": name, "NUM_SHOTS": -1, "SUBSAMPLE_CLASSES": "all", "SUBSET": ""}
    return SimpleNamespace(
        DATASET=SimpleNamespace(**data), TRAINER=SimpleNamespace(MODAL="base2novel"), SEED=-1, VERBOSE=False
    )


def check_public(cfg: CfgNode) -> list[str]:
    """Lines on a data set that tables are made of: is it the one that others have?"""
    if cfg.DATASET.NAME not in KNOWN:
        return []
    row = check(cfg.DATASET.NAME, cfg.DATASET.ROOT, decode="none")  # opened by who asks
    return [f"not as published: {line}" for line in row.problems] + row.notes


def check(name: str, root: str, decode: str = "sample", jobs: int = 4) -> Row:
    """The row of one data set. decode: which images are opened, "none", "sample" or "all"."""
    row, kind = Row(name), DATASET_REGISTRY.get(name)
    try:
        folder = kind.locate(kind.__new__(kind), root)
    except UserError as error:
        row.status, row.problems = ABSENT, [str(error), *mistakes(kind, root, "")]
        return row
    row.folder = os.path.relpath(folder, root)
    row.notes += old_pickles(folder)
    try:
        data = kind(settings(root, name))
    except UserError as error:
        row.missing = getattr(error.__cause__, "count", None)
        row.problem(str(error))
        row.problems += mistakes(kind, root, folder)
        return row
    count(row, data)
    compare(row, data)
    if decode != "none":
        images = list({i.impath: i for items in (data.train_x, data.val or [], data.test) for i in items}.values())
        broken = unreadable(images[:: 1 if decode == "all" else max(1, len(images) // SAMPLE)], jobs)
        row.unreadable = len(broken)
        if broken:
            row.problem(f"{len(broken)} images cannot be read: {broken[0]}{', ...' * (len(broken) > 1)}")
    return row


def count(row: Row, data: DatasetBase) -> None:
    """Fill in what was read."""
    row.classes, row.test, row.missing = data.num_classes, len(data.test), 0
    row.train = 0 if data.test_only else len(data.train_x)
    row.val = len(data.val) if data.has_val else 0
    known = KNOWN.get(row.dataset)
    if not data.split_file:
        row.split = "lists"
    elif data.split_used != data.split_file:
        row.split = "local"
    else:
        row.split = "published" if known and known.split == data.split_digest else "as found"


def compare(row: Row, data: DatasetBase) -> None:
    """Counts, split digest and draws against what is known."""
    local = row.split == "local"
    for line in not_published(row.dataset, vars(row), "" if local else data.split_digest, data.split_file):
        row.problem(line)
    if local:
        row.problem(f"{data.split_used} is a split made here: its numbers cannot be compared with published ones")
    elif not row.problems:
        row.problems += wrong_draws(data, published_draws().get(row.dataset, []))
        row.status = PROBLEM if row.problems else OK


def wrong_draws(data: DatasetBase, published: list[list[str]]) -> list[str]:
    """Seeds 1, 2, ... whose few-shot draw is not the published one."""
    lines = []
    for seed, expected in enumerate(published, start=1):
        rng = random.Random(seed)
        drawn = [few_shot(data.train_x, DRAW_SHOTS, rng), few_shot(data.val, MAX_VAL_SHOTS, rng)]
        paths = ["\n".join(data.relative(item) for item in items) for items in drawn]
        if [hashlib.sha256(text.encode()).hexdigest()[:16] for text in paths] != expected:
            lines.append(f"the draw of seed {seed} is not the published one: the lists differ in content or order")
    return lines


# --- the usual mistakes


def mistakes(kind: type, root: str, folder: str) -> list[str]:
    """What may have gone wrong with a data set that cannot be read; `folder` is "" if it was not found."""
    if not os.path.isdir(root):
        return []
    found = list(unpacked_not(kind, root, folder))
    if not folder:
        there = {name.lower(): name for name in os.listdir(root)}
        wrong = [(there[name.lower()], name) for name in kind.folders if name.lower() in there]
        return found + [f"{old} is spelt otherwise: rename it to {new}" for old, new in wrong]
    return found + list(too_deep(kind, folder))


def unpacked_not(kind: type, root: str, folder: str) -> Iterator[str]:
    """Archives that look like the data set's: any in its folder, one of a like name beside it."""
    stems = [plain(os.path.basename(name)) for name in (*kind.folders, *kind.images) if name]
    for place in filter(None, (root, folder)):
        archives = sorted(name for name in os.listdir(place) if name.lower().endswith(ARCHIVES))
        ours = [name for name in archives if place == folder or any(stem in plain(name) for stem in stems)]
        if ours:
            yield f"{', '.join(ours)} in {place} may not be unpacked"


def too_deep(kind: type, folder: str) -> Iterator[str]:
    """Folders inside a folder of the same name, and files that belong one folder up."""
    with os.scandir(folder) as entries:
        inner = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    for name in inner:
        if os.path.isdir(os.path.join(folder, name, name)):
            yield f"{name}/{name} is one folder too many: move its content up"
        for file in filter(None, (kind.split_file, "variants.txt", "classnames.txt", "ClassName.txt")):
            if os.path.isfile(os.path.join(folder, name, file)) and not os.path.isfile(os.path.join(folder, file)):
                yield f"{file} lies in {name}/: move the content of that folder up"
    images = [name for name in kind.images if name and not os.path.isdir(os.path.join(folder, name))]
    for name in images:
        near = [other for other in inner if other.lower() == name.lower()] or closest(name, inner, n=1)
        if near and plain(near[0]) == plain(name):
            yield f"{near[0]} is spelt otherwise: rename it to {name}"


def old_pickles(folder: str) -> list[str]:
    """A note on few-shot files of other programs."""
    place = os.path.join(folder, "split_fewshot")
    names = sorted(os.listdir(place)) if os.path.isdir(place) else []
    pickles = [name for name in names if name.endswith(".pkl")]
    if not pickles:
        return []
    return [f"split_fewshot has {len(pickles)} pickles, which are never read; import-subset makes a subset of one"]


def plain(name: str) -> str:
    """Letters and digits in lower case."""
    return "".join(c for c in name.lower() if c.isalnum())


# --- the table

COLUMNS = ("dataset", "folder", "split", "classes", "train", "val", "test", "missing", "unreadable", "status")


def table(rows: Iterable[Row]) -> list[str]:
    """The lines of the table, and below it what is wrong with whom."""
    rows = list(rows)
    cells = [COLUMNS] + [tuple(_cell(getattr(row, key)) for key in COLUMNS) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = [str.ljust if key in ("dataset", "folder", "split", "status") else str.rjust for key in COLUMNS]
    lines = ["  ".join(side(*cell) for side, *cell in zip(sides, line, widths, strict=True)).rstrip() for line in cells]
    for row in rows:
        said = row.problems + row.notes if row.status != ABSENT else row.problems[1:]
        lines += [f"{row.dataset}: {text.removeprefix(f'{row.dataset}: ')}" for text in said]
    return lines


def _cell(value: object) -> str:
    return "-" if value in (None, "") else f"{value:,}" if isinstance(value, int) else str(value)
