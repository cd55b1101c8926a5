"""Your own pictures without code: DATASET.NAME ImageFolder (class folders) or Manifest (a table of paths).

DATASET.CUSTOM says where they lie, what the classes are called and with which prompts. Few-shot draws and
base/new halves are as for every data set. In a stream of tasks (TRAINER.MODAL mtil) the validation pictures
are trained on, as there is no validation there.
"""

import csv
import io
import json
import os
import random
from collections.abc import Iterable

from dassl.data import group_indices
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import MissingFile, UserError, brief, closest, read_json, read_text

from .mtil import MtilDataset
from .official import words
from .readers import PARTS, Lists, class_folders, folder_images, listed

SPELLINGS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
COLUMNS = ("path", "label", "split")
Row = tuple[str, str, str]  # path, class, part or ""


class CustomDataset(MtilDataset):
    """A data set that DATASET.CUSTOM describes. A subclass gives `rows` and `find`."""

    images = ("",)

    def __init__(self, cfg):
        self.own = own = cfg.DATASET.CUSTOM
        self.stream = cfg.TRAINER.MODAL == "mtil"
        if not own.PATH:
            raise UserError(f"{type(self).__name__}: no pictures given (DATASET.CUSTOM.PATH)")
        self.task = own.TASK or os.path.basename(own.PATH.rstrip("/")).removesuffix(".csv").removesuffix(".json")
        self.prompts = [own.PROMPTS] if isinstance(own.PROMPTS, str) else list(own.PROMPTS)
        if not self.prompts or any(prompt.count("{}") != 1 for prompt in self.prompts):
            raise UserError(f"DATASET.CUSTOM.PROMPTS is {self.prompts}; each needs one {{}} for the class name")
        if len(own.SPLIT) != 3 or min(own.SPLIT) < 0 or abs(sum(own.SPLIT) - 1) > 1e-6 or own.SPLIT[2] == 0:
            raise UserError(f"DATASET.CUSTOM.SPLIT is {list(own.SPLIT)}; expected parts for train, val, test, sum 1")
        super().__init__(cfg)

    def facts(self) -> dict:
        return super().facts() | {"dataset": self.task}

    def locate(self, root: str) -> str:
        path = os.path.join(os.path.abspath(os.path.expanduser(root or ".")), os.path.expanduser(self.own.PATH))
        if not os.path.exists(path):
            parent = os.path.dirname(path.rstrip("/"))
            near = ", ".join(closest(os.path.basename(path), os.listdir(parent) if os.path.isdir(parent) else []))
            raise MissingFile(f"{type(self).__name__}: no {path} (DATASET.CUSTOM.PATH; there: {near or 'nothing'})")
        return self.find(path)

    def find(self, path: str) -> str:
        """The folder that the paths of `rows` start from; `path` exists."""
        raise NotImplementedError

    def rows(self) -> Iterable[Row]:
        """All pictures: (relative path, class, part of the split, "" if it has none)."""
        raise NotImplementedError

    def read(self) -> Lists:
        rows = sorted(self.rows(), key=lambda row: row[0])
        if not rows:
            raise UserError(f"no pictures in {self.own.PATH}")
        names = self.names({kind for _, kind, _ in rows})
        label_of = {kind: label for label, kind in enumerate(names)}
        try:
            rows = with_parts(rows, self.own.SPLIT)
        except UserError as error:
            raise UserError(f"{self.own.PATH}: {error}") from None
        train, val, test = (
            listed(self.image_dir, [(p, label_of[k], names[k]) for p, k, own in rows if own == part], self.own.PATH)
            for part in PARTS
        )
        return (train + val, [], test) if self.stream else (train, val, test)

    def names(self, kinds: set[str]) -> dict[str, str]:
        """{class: its name in prompts}, in label order: that of the file NAMES, else sorted."""
        if not self.own.NAMES:
            if all(kind.isdecimal() for kind in kinds):
                raise UserError(
                    f"the classes are numbers ({min(kinds)}, ...); DATASET.CUSTOM.NAMES has to be a "
                    'JSON file that gives them names: {"0": "tabby cat", ...}'
                )
            return {kind: words(kind) for kind in sorted(kinds)}
        path = os.path.join(self.image_dir, os.path.expanduser(self.own.NAMES))
        names = read_json(path)
        if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
            raise UserError(f'{path}: expected {{"class": "name in prompts", ...}}')
        if set(names) != kinds:
            odd = min(set(names) ^ kinds)
            raise UserError(f"{path} has {len(names)} classes, the pictures {len(kinds)}; {odd} is in only one of them")
        return names


@DATASET_REGISTRY.register()
class ImageFolder(CustomDataset):
    """PATH/<class>/ or, with a split of its own, PATH/{train,val,test}/<class>/ (val may be absent)."""

    def find(self, path: str) -> str:
        if not os.path.isdir(path):
            raise UserError(f"ImageFolder: {path} is no folder; a table of paths is DATASET.NAME Manifest")
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
        items = folder_images(root, folders, {name: name for name in folders})
        return [(self.relative(item), item.classname, part) for item in items]


@DATASET_REGISTRY.register()
class Manifest(CustomDataset):
    """A CSV file with a header path,label,split or a JSON list of such objects; `split` may be absent or empty.

    A label is the class name, or a number or code that NAMES gives a name.
    """

    def find(self, path: str) -> str:
        if os.path.isdir(path):
            raise UserError(f"Manifest: {path} is a folder; class folders are DATASET.NAME ImageFolder")
        self.table = path
        folder = os.path.normpath(os.path.join(os.path.dirname(path), os.path.expanduser(self.own.IMAGES)))
        if not os.path.isdir(folder):
            raise MissingFile(f"Manifest: no folder {folder} (DATASET.CUSTOM.IMAGES)")
        return folder

    def rows(self) -> Iterable[Row]:
        seen: dict[str, str] = {}
        for where, record in table_records(self.table):
            path, kind, part = (str(record.get(key) if record.get(key) is not None else "").strip() for key in COLUMNS)
            where = f"{self.table}, {where}"
            if not path or not kind:
                raise UserError(f"{where}: expected a path and a label, got {brief(record)}")
            path = os.path.normpath(path)
            if os.path.isabs(path) or path.startswith(".."):
                raise UserError(f"{where}: {path} leaves {self.image_dir} (DATASET.CUSTOM.IMAGES)")
            if part and part.lower() not in SPELLINGS:
                raise UserError(f"{where}: split is {part!r}, expected train, val or test")
            if path in seen:
                raise UserError(f"{where}: {path} stands there twice; see {seen[path]}")
            seen[path] = where
            yield path, kind, SPELLINGS.get(part.lower(), "")


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
    missing = [key for key in COLUMNS[:2] if key not in columns]
    if missing:
        raise UserError(
            f"{path}: its first line names the columns path, label and split; found {', '.join(columns) or 'nothing'}"
        )
    return records


def with_parts(rows: list[Row], split: Iterable[float]) -> list[Row]:
    """Rows with a part each. Those without one are split class by class, whatever the run's seed.

    A class gives at least one picture to train and one to test. UserError: a class of one picture, or rows of
    which some have a part and some have none.
    """
    without = sum(not part for _, _, part in rows)
    if not without:
        return rows
    if without < len(rows):
        raise UserError(f"{without} of {len(rows)} pictures have no part of the split; expected all or none")
    train, val, _ = split
    done = []
    for kind, indices in group_indices(kind for _, kind, _ in rows).items():
        n = len(indices)
        if n < 2:
            raise UserError(f"class {kind} has {n} picture, expected at least 2: one to train, one to test")
        n_train = min(max(1, round(train * n)), n - 1)
        n_val = min(round(val * n), n - 1 - n_train)
        order = random.Random(json.dumps([kind, n])).sample(indices, n)
        cuts = (0, n_train, n_train + n_val, n)
        for part, start, end in zip(PARTS, cuts, cuts[1:], strict=False):
            chosen = order[start:end]
            done += [(rows[i][0], kind, part) for i in sorted(chosen)]
    return done
