"""Your own images without code: DATASET.NAME ImageFolder (class folders) or Manifest (a table of paths).

DATASET.CUSTOM says where they lie, what the classes are called and with which prompts. Few-shot draws and
base/new halves are as for every data set. In a stream of tasks (TRAINER.MODAL mtil) the validation images
are trained on, as there is no validation there.
"""

import csv
import io
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from dassl.data import group_indices
from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import MissingFile, UserError, brief, check_availability, closest, get_logger
from dassl.utils.files import read_json, read_text
from dassl.utils.tools import listdir_nohidden, sha256_file

from .mtil import MtilDataset, words
from .readers import PARTS, Lists, class_folders, folder_images, listed, read_names

SPELLINGS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
COLUMNS = ("path", "label", "split")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|[+-]?inf", re.IGNORECASE)  # as spreadsheets write them
MOST_COMPARED = 20_000  # images of a data set up to which copies are looked for
Row = tuple[str, str, str]  # relative path, class, part of the split or ""


class CustomDataset(MtilDataset):
    """A data set that DATASET.CUSTOM describes. A subclass gives `rows` and `find`."""

    images = ("",)
    find: Callable[[str], str]  # the folder that the paths of `rows` start from; what its argument names exists
    rows: Callable[[], Iterable[Row]]  # all images

    def __init__(self, cfg):
        self.custom = custom = cfg.DATASET.CUSTOM
        self.first_named: dict[str, str] = {}  # where a table names a class first
        self.stream = cfg.TRAINER.MODAL == "mtil"
        if not custom.PATH:
            raise UserError(f"{type(self).__name__}: no images given (DATASET.CUSTOM.PATH)")
        self.task = custom.TASK or os.path.basename(custom.PATH.rstrip("/")).removesuffix(".csv").removesuffix(".json")
        self.prompts = [custom.PROMPTS] if isinstance(custom.PROMPTS, str) else list(custom.PROMPTS)
        if not self.prompts or any(prompt.count("{}") != 1 for prompt in self.prompts):
            raise UserError(f"DATASET.CUSTOM.PROMPTS is {self.prompts}; each needs one {{}} for the class name")
        if len(custom.SPLIT) != 3 or min(custom.SPLIT) < 0 or abs(sum(custom.SPLIT) - 1) > 1e-6 or custom.SPLIT[2] == 0:
            raise UserError(f"DATASET.CUSTOM.SPLIT is {list(custom.SPLIT)}; expected parts for train, val, test, sum 1")
        super().__init__(cfg)

    def metadata(self) -> dict:
        left_out = {"left_out": list(self.custom.LEAVE_OUT)} if self.custom.LEAVE_OUT else {}
        return super().metadata() | {"dataset": self.task} | left_out

    def locate(self, root: str) -> str:
        path = os.path.join(os.path.abspath(os.path.expanduser(root or ".")), os.path.expanduser(self.custom.PATH))
        if not os.path.exists(path):
            parent = os.path.dirname(path.rstrip("/"))
            near = ", ".join(closest(os.path.basename(path), os.listdir(parent) if os.path.isdir(parent) else []))
            raise MissingFile(f"no {path} (DATASET.CUSTOM.PATH; there: {near or 'nothing'})")
        return self.find(path)

    def place(self, kind: str) -> str:
        """Where a class is first named, for an error."""
        return self.first_named.get(kind, os.path.join(self.image_dir, kind))

    def oddities(self, train_x: list[Datum], val: list[Datum], test: list[Datum]) -> Iterator[str]:
        yield from super().oddities(train_x, val, test)
        copies = same_content(train_x, test)
        if copies:
            yield f"{len(copies):,} test images are copies of training images: {' = '.join(copies[0])}"

    def read(self) -> Lists:
        rows = sorted(self.rows(), key=lambda row: row[0])
        kinds = {kind for _, kind, _ in rows}
        for kind in self.custom.LEAVE_OUT:
            check_availability(kind, sorted(kinds), "DATASET.CUSTOM.LEAVE_OUT")
        rows = [row for row in rows if row[1] not in self.custom.LEAVE_OUT]
        if not rows:
            raise UserError(f"no images in {self.custom.PATH}")
        names = self.names(kinds - set(self.custom.LEAVE_OUT))
        self.check_names(names)
        label_of = {kind: label for label, kind in enumerate(names)}
        items: dict[str, list] = {part: [] for part in PARTS}
        for path, kind, part in with_parts(rows, self.custom.SPLIT, self.custom.PATH):
            items[part].append((path, label_of[kind], names[kind]))
        train, val, test = (listed(self.image_dir, items[part], self.custom.PATH) for part in PARTS)
        return (train + val, [], test) if self.stream else (train, val, test)

    def names(self, kinds: set[str]) -> dict[str, str]:
        """{class: its name in prompts}, in label order: that of the file NAMES, else sorted."""
        if not self.custom.NAMES:
            numbers = sorted(kind for kind in kinds if not kind.isdecimal() and NUMBER.fullmatch(kind))
            if numbers or all(kind.isdecimal() or kind.lower() in ("true", "false") for kind in kinds):
                first = [*numbers, min(kinds)][0]
                raise UserError(
                    f"{self.place(first)}: the classes are numbers ({first}, ...); DATASET.CUSTOM.NAMES has to be a "
                    'JSON file that gives them names: {"0": "tabby cat", ...}'
                )
            return {kind: words(kind) for kind in sorted(kinds)}
        path = os.path.join(self.image_dir, os.path.expanduser(self.custom.NAMES))
        names = {kind: name for kind, name in read_names(path).items() if kind not in self.custom.LEAVE_OUT}
        if set(names) != kinds:
            odd = min(set(names) ^ kinds)
            raise UserError(f"{path} has {len(names)} classes, the images {len(kinds)}; {odd} is in only one of them")
        return names

    def check_names(self, names: dict[str, str]) -> None:
        """UserError for a class without a name, and for two whose names are alike to CLIP, which reads lower case."""
        seen: dict[str, str] = {}
        for kind, name in names.items():
            alike = " ".join(words(name).casefold().split())
            if not alike:
                raise UserError(f"{self.place(kind)}: class {kind!r} has no name")
            if seen.setdefault(alike, kind) != kind:
                raise UserError(
                    f"{self.place(kind)}: class {kind!r} has the name of class {seen[alike]!r}, {name!r}; "
                    "DATASET.CUSTOM.NAMES can give it another, DATASET.CUSTOM.LEAVE_OUT leaves it out"
                )


@DATASET_REGISTRY.register()
class ImageFolder(CustomDataset):
    """PATH/<class>/ or, with a split of its own, PATH/{train,val,test}/<class>/ (val may be absent)."""

    def find(self, path: str) -> str:
        if not os.path.isdir(path):
            raise UserError(f"{path} is no folder; a table of paths is DATASET.NAME Manifest")
        return os.path.normpath(path)

    def rows(self) -> Iterable[Row]:
        folders = class_folders(self.image_dir)
        parts = {SPELLINGS[name.lower()]: name for name in folders if name.lower() in SPELLINGS}
        if not parts:
            return self._images("", "")
        others = [name for name in folders if name.lower() not in SPELLINGS]
        if others or not {"train", "test"} <= set(parts):
            there = ", ".join([*parts.values(), *others[:3]])
            raise UserError(f"{self.image_dir}: expected class folders, or train, test and perhaps val; found {there}")
        return [row for part, folder in parts.items() for row in self._images(folder, part)]

    def _images(self, inner: str, part: str) -> list[Row]:
        root = os.path.join(self.image_dir, inner) if inner else self.image_dir
        folders = class_folders(root)
        others = sorted(set(listdir_nohidden(root)) - set(folders))
        left_out = set(folders) & set(self.custom.LEAVE_OUT)  # may be without images
        kept = [name for name in folders if name not in left_out]
        items = folder_images(root, kept, {name: name for name in kept}, others)
        if others:
            inside = sum(os.path.isdir(os.path.join(root, name)) for name in others)
            get_logger().warning(
                f"ImageFolder: {root}: left out, as no images of a class: {len(others) - inside} files and {inside} "
                f"folders, {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}"
            )
        return [(self.relative(item), item.classname, part) for item in items] + [(n, n, part) for n in left_out]


@DATASET_REGISTRY.register()
class Manifest(CustomDataset):
    """A CSV file with a header path,label,split or a JSON list of such objects; `split` may be absent or empty.

    A label is the class name, or a number or code that NAMES gives a name.
    """

    def find(self, path: str) -> str:
        if os.path.isdir(path):
            raise UserError(f"{path} is a folder; class folders are DATASET.NAME ImageFolder")
        self.table = path
        folder = os.path.normpath(os.path.join(os.path.dirname(path), os.path.expanduser(self.custom.IMAGES)))
        if not os.path.isdir(folder):
            raise MissingFile(f"no folder {folder} (DATASET.CUSTOM.IMAGES)")
        return folder

    def rows(self) -> Iterable[Row]:
        seen: dict[str, str] = {}
        for where, record in table_records(self.table):
            where = f"{self.table}, {where}"
            if surplus := record.pop(None, ()):
                cells = f"{len(record) + len(surplus)} cells for {len(record)} columns"
                raise UserError(f'{where}: {cells}; a text with a comma is quoted: "a, b"')
            path, kind, part = (text_of(record, key, where) for key in COLUMNS)
            if not path or not kind:
                raise UserError(f"{where}: expected a path and a label, got {brief(record)}")
            self.first_named.setdefault(kind, where)
            if os.path.isabs(path):
                below = os.path.commonpath([path, self.image_dir]) == self.image_dir
                path = os.path.relpath(path, self.image_dir if below else os.path.realpath(self.image_dir))
            path = os.path.normpath(path)
            if path.split(os.sep)[0] == os.pardir:
                raise UserError(f"{where}: {path} leaves {self.image_dir} (DATASET.CUSTOM.IMAGES)")
            if part and part.lower() not in SPELLINGS:
                raise UserError(f"{where}: split is {part!r}, expected train, val or test")
            if path in seen:
                raise UserError(f"{where}: {path} stands there twice; see {seen[path]}")
            seen[path] = where
            yield path, kind, SPELLINGS.get(part.lower(), "")


def text_of(record: dict, key: str, where: str) -> str:
    """One cell of a table, "" if it is not there. A label may be a whole number."""
    value = record.get(key)
    if isinstance(value, str) and "\n" in value.strip():
        raise UserError(f"{where}: {key} runs over several lines, is a quotation mark missing? {brief(value)}")
    if isinstance(value, str) or value is None:
        return (value or "").strip()
    if key == "label" and type(value) is int:
        return str(value)
    raise UserError(f"{where}: {key} is {json.dumps(value)}, expected a text")


def same_content(train: list[Datum], test: list[Datum]) -> list[tuple[str, str]]:
    """(training image, test image) of the same bytes. Only files of one size are read, and of large sets none."""
    if len(train) + len(test) > MOST_COMPARED:
        return []
    try:
        sizes = {item.file: os.path.getsize(item.file) for item in (*train, *test)}
        both = {sizes[item.file] for item in train} & {sizes[item.file] for item in test}
        digests = {file: sha256_file(file) for file, size in sizes.items() if size in both}
    except OSError:  # of an image that cannot be read, which is said when it is opened
        return []
    trained = {digests[item.file]: item.impath for item in train if item.file in digests}
    pairs = [(trained.get(digests.get(item.file, "")), item.impath) for item in test]
    return [(one, other) for one, other in pairs if one not in (None, other)]


def table_records(path: str) -> Iterable[tuple[str, dict]]:
    """(place in the file, record) for each record of a .csv or .json file."""
    if path.lower().endswith(".json"):
        tree = read_json(path)
        if not isinstance(tree, list) or not all(isinstance(record, dict) for record in tree):
            raise UserError(f'{path}: expected a list of objects {{"path": ..., "label": ..., "split": ...}}')
        return [(f"item {i}", record) for i, record in enumerate(tree)]
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
        columns = reader.fieldnames or []
        records = [(f"line {reader.line_num}", record) for record in reader]
    except csv.Error as error:
        raise UserError(f"{path} is no CSV file: {error}") from error
    if not set(columns).issuperset(COLUMNS[:2]) or len(set(columns)) < len(columns):
        named = ", ".join(columns) or "nothing"
        raise UserError(f"{path}: its first line names the columns path, label and split, each once; found {named}")
    return records


def with_parts(rows: list[Row], split: Iterable[float], source: str) -> list[Row]:
    """Rows with a part each. Those without one are split class by class, whatever the run's seed.

    A class gives at least one image to train and one to test. UserError: a class of one image, or rows of
    which some have a part and some have none.
    """
    without = sum(not part for _, _, part in rows)
    if not without:
        return rows
    if without < len(rows):
        raise UserError(f"{source}: {without} of {len(rows)} images have no part of the split; expected all or none")
    train, val, _ = split
    done = []
    for kind, indices in group_indices(kind for _, kind, _ in rows).items():
        n = len(indices)
        if n < 2:
            raise UserError(f"{source}: class {kind} has {n} image, expected at least 2: one to train, one to test")
        n_train = min(max(1, round(train * n)), n - 1)
        n_val = min(round(val * n), n - 1 - n_train)
        order = random.Random(json.dumps([kind, n])).sample(indices, n)
        for part, (start, end) in zip(PARTS, pairwise((0, n_train, n_train + n_val, n)), strict=True):
            done += [(rows[i][0], kind, part) for i in sorted(order[start:end])]
    return done
