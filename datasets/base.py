"""The base-to-new protocol of CoOp and CoCoOp (Zhou et al., IJCV 2022 and CVPR 2022) as a base class.

A data set is a declaration: where it lies, how it is read, its templates. The rest is common: k training
images a class and min(k, 4) validation images a class are drawn from all classes, then the classes are cut to
the first half ("base") or the second ("new"), so both halves share one draw.

A draw is kept in a run's subset.json, and another run can be given it (--subset, DATASET.SUBSET): {"format": 1,
"dataset", "shots", "seed", "sampler", "split": digest of the lists, "train": [paths], "val": [paths]}; instead of a
list "all", and for val "test" or "none", where nothing was drawn.
"""

import contextlib
import hashlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from dassl.config import with_values
from dassl.data import few_shot, subsample_classes
from dassl.data.datasets import DatasetBase, Datum, check_items
from dassl.utils import MissingFile, UserError, brief, check_availability, closest, get_logger, read_json
from dassl.utils.moved import OldMethods

from . import PUBLIC
from .readers import Lists, split_json
from .tools.known import not_published, source_of

SUBSET_FORMAT = 1
SUBSET_KEYS = ("format", "dataset", "shots", "seed", "sampler", "split", "train", "val")


def read_subset(path: str, dataset: str, split: str, shots: int) -> dict:
    """A draw for these lists. UserError if the file is none, or of another data set, split or number of shots."""
    drawn = read_json(path)
    if not isinstance(drawn, dict) or any(key not in drawn for key in SUBSET_KEYS) or drawn["format"] != SUBSET_FORMAT:
        raise UserError(f"{path} is no subset: expected format {SUBSET_FORMAT} with {', '.join(SUBSET_KEYS[1:])}")
    for what, recorded, asked in (
        ("data set", drawn["dataset"], dataset),
        ("split", drawn["split"], split),
        ("DATASET.NUM_SHOTS", drawn["shots"], shots),
    ):
        if recorded != asked:
            raise UserError(f"{path} was drawn for {what} {recorded}, but this run has {asked}")
    for part in ("train", "val"):
        paths = drawn[part]
        if not isinstance(paths, str | list) or not all(isinstance(item, str) for item in paths):
            raise UserError(f"{path}: {part} is {brief(paths)}, expected a list of paths")
    return drawn


def picked(items: list[Datum], wanted: str | list[str], relative: Callable[[Datum], str], where: str) -> list[Datum]:
    """The items of these relative paths, in the order of the paths; all items where nothing was drawn."""
    if isinstance(wanted, str):
        return items
    by_path = {relative(item): item for item in items}
    unknown = [path for path in wanted if path not in by_path]
    if unknown:
        raise UserError(f"{where}: {len(unknown)} of {len(wanted)} paths are not in the split's list: {unknown[0]}")
    return [by_path[path] for path in wanted]


CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "datasets"
SAMPLER = "coop-1"  # names the way of drawing in saved subsets
MAX_VAL_SHOTS = 4


def same_template(text: str) -> dict[str, str]:
    """One template for every method."""
    return {"coop": text, "kgcoop": text}


def drive(file_id: str) -> str:
    return f"https://drive.google.com/file/d/{file_id}"


class FewShotDataset(OldMethods, DatasetBase):
    """A data set below cfg.DATASET.ROOT with CoOp's few-shot draw and class cut.

    Class attributes to declare: `folders` (candidate folders below the root), `images` (candidate image
    folders below that; "" is the folder itself), `split_file` and `split_link`, `templates` (by family of
    methods), `link` (where to get the images). A subclass with another layout overrides `read`.

    On the instance: `dataset_dir`, `image_dir`, `split_used` (the split file that was read), `split_digest` and
    `sizes` (of the lists read), `has_val` (False where val is the test list, or empty), `drawn` (the draw, before the
    class cut, as JSON-ready data). The global random streams stay untouched, and nothing is written below the root.
    """

    folders: tuple[str, ...] = ()
    images: tuple[str, ...] = ("images",)
    split_file = ""
    split_link = ""
    link = ""
    templates = same_template("a photo of a {}.")
    split_used = ""
    table = ""  # the file that lists the images, if errors are to name it rather than their folder
    says_oddities = False
    split_digest = ""
    peers = PUBLIC  # the sets that tables with it are made of, by the names of configs/datasets
    test_only = False  # nothing is drawn; train_x carries the class names

    def __init__(self, cfg):
        with self.naming():
            self.dataset_dir, self.image_dir = self.places(cfg.DATASET.ROOT)
            train, val, test = self.read()
        self.has_val = bool(val) and val is not test
        where = f"{type(self).__name__}: {self.table or self.dataset_dir}"
        check_items(where, train, (), val, test)
        if not test:
            raise UserError(f"{where}: no test images")
        self.split_digest = self._digest(train, val if self.has_val else (), test)
        self.say_oddities(train, val, test)
        self.sizes = {
            "classes": self.get_num_classes(train),
            "train": 0 if self.test_only else len(train),
            "val": len(val) if self.has_val else 0,
            "test": len(test),
        }
        if cfg.VERBOSE and not self.is_local and (lines := self.unpublished()):
            get_logger().warning(f"{type(self).__name__}: not the published lists: {'; '.join(lines)}")
        with self.naming():
            train, val = self._draw(train, val, cfg)
        subset = cfg.DATASET.SUBSAMPLE_CLASSES
        if self.has_val:
            train, val, test = subsample_classes(train, val, test, subset=subset)
        else:
            train, test = subsample_classes(train, test, subset=subset)
            val = test if val else None
        super().__init__(train_x=train, val=val, test=test)

    @classmethod
    def others(cls, name: str) -> list[Path]:
        """The yaml file, with a node DATASET, of a data set that TEST.OTHERS names; of all its peers for `auto`."""
        names, known = cls.peers if name == "auto" else [name], sorted(file.stem for file in CONFIGS.glob("*.yaml"))
        check_availability(name, ["auto", *known], "TEST.OTHERS")
        return [CONFIGS / f"{name}.yaml" for name in names]

    @property
    def template(self) -> str:
        """The zero-shot template that KgCoOp and MERGETUNE use for this data set."""
        return self.templates["kgcoop"]

    def locate(self, root: str) -> str:
        """The data set's folder below `root`. UserError: what was looked for, where."""
        if not root:
            raise UserError("no data root given (--root, DATASET.ROOT)")
        root = os.path.abspath(os.path.expanduser(root))
        if not os.path.isdir(root):
            raise MissingFile(f"the data root {root} is no folder")
        return self._first_folder(root, self.folders, "folder")

    def places(self, root: str) -> tuple[str, str]:
        """The data set's folder and its image folder."""
        folder = self.locate(root)
        return folder, self._first_folder(folder, self.images, "image folder")

    def read(self) -> Lists:
        """(train, val, test), complete: all classes, all images."""
        for name in (self.split_file, self.local_split()):
            path = os.path.join(self.dataset_dir, name)
            if os.path.isfile(path):
                if name != self.split_file:
                    get_logger().info(f"{path} is a split made here: results do not compare with published ones")
                self.split_used, self.table = name, path
                return split_json(path, self.image_dir)
        raise MissingFile(
            f"no split file {os.path.join(self.dataset_dir, self.split_file)}. It decides which images are tested on, "
            f"so none is made up. One of your own, of another name: python -m datasets make-split {type(self).__name__}"
        )

    @classmethod
    def local_split(cls) -> str:
        """The file that `python -m datasets make-split` writes for a set without its published split."""
        return f"split_local_{cls.__name__}.json"

    def metadata(self) -> dict:
        """What results.json records of it: a split that is not the published one."""
        return {"split_file": self.split_used} if self.is_local else {}

    def oddities(self, train_x: list[Datum], val: list[Datum], test: list[Datum]) -> Iterator[str]:
        yield from super().oddities(train_x, val, test)
        if repeated := len(train_x) - len({item.impath for item in train_x}):
            yield f"{repeated} of {len(train_x):,} training images stand in the list more than once"

    @property
    def is_local(self) -> bool:
        """Whether the split file that was read is not the published one."""
        return self.split_used not in ("", self.split_file)

    def unpublished(self) -> list[str]:
        """What is not as published in the lists of a public set."""
        digest = "" if self.is_local else self.split_digest
        local = f"{self.split_used} is a split made here: its numbers do not compare with published ones"
        return not_published(type(self).__name__, self.sizes, digest, self.split_file) + [local] * self.is_local

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Errors inside it name the data set and, for what is missing, where to get it."""
        try:
            yield
        except UserError as error:
            name = type(self).__name__
            if str(error).startswith(name):
                raise
            links = self._sources() if isinstance(error, MissingFile) else ""
            raise type(error)(f"{name}: {error}{links}") from error

    def _first_folder(self, parent: str, candidates: tuple[str, ...], what: str) -> str:
        for candidate in candidates:
            path = os.path.join(parent, candidate) if candidate else parent
            if os.path.isdir(path):
                return path
        there = sorted(name for name in os.listdir(parent) if not name.startswith("."))
        near = ", ".join(closest(candidates[0], there)) or "nothing"
        raise MissingFile(f"no {what} {' or '.join(candidates)} below {parent} (there: {near})")

    def _sources(self) -> str:
        link = self.link or source_of(type(self).__name__)
        links = [f"images: {link}"] if link else []
        if self.split_link:
            links.append(f"{self.split_file}: {self.split_link}")
        return f". Where to get it: {'; '.join(links)}" if links else ""

    def _draw(self, train: list[Datum], val: list[Datum], cfg) -> tuple[list[Datum], list[Datum]]:
        """NUM_SHOTS training and min(NUM_SHOTS, 4) validation images a class, from one stream, training first.

        A class short of training images is refused, or gives all it has (DATASET.FEWER_SHOTS take); one short of
        validation images gives all it has. A subset that was drawn before (DATASET.SUBSET) takes the place of the draw.
        """
        name, shots = type(self).__name__, 0 if self.test_only else cfg.DATASET.NUM_SHOTS
        if cfg.DATASET.SUBSET and not self.test_only:
            path = cfg.DATASET.SUBSET
            self.drawn = read_subset(path, name, self.split_digest, shots)
            every, names = train, {item.label: item.classname for item in train}
            train = picked(train, self.drawn["train"], self.relative, path)
            if absent := names.keys() - {item.label for item in train}:
                raise UserError(f"{path} has no training images of {len(absent)} classes: {names[min(absent)]}, ...")
            seed, seeded = self.drawn["seed"], self.drawn["sampler"] == SAMPLER and shots >= 1
            if seeded and isinstance(seed, int) and seed >= 0 and train != self._few(every, val, shots, seed)[0]:
                get_logger().warning(f"{path}: these are not the training images that seed {seed} draws")
            return train, picked(val, self.drawn["val"], self.relative, path)
        drawn = {"format": SUBSET_FORMAT, "dataset": name, "shots": shots, "seed": cfg.SEED, "sampler": SAMPLER}
        drawn |= {"split": self.split_digest, "train": "all"}
        drawn["val"] = "all" if self.has_val else "test" if val else "none"
        if shots >= 1:
            short = "all" if cfg.DATASET.FEWER_SHOTS == "take" else "refuse"
            train, val = self._few(train, val, shots, cfg.SEED, short)
            drawn["train"] = [self.relative(item) for item in train]
            if self.has_val:
                drawn["val"] = [self.relative(item) for item in val]
        self.drawn = drawn
        return train, val

    def _few(self, train: list[Datum], val: list[Datum], shots: int, seed: int, short: str = "all"):
        rng = random.Random(seed if seed >= 0 else None)  # Random(-1) would be Random(1)
        train = few_shot(train, shots, rng, short=short)
        return train, few_shot(val, min(shots, MAX_VAL_SHOTS), rng) if self.has_val else val

    def relative(self, item: Datum) -> str:
        """Its path below `image_dir`."""
        return item.impath[len(self.image_dir) + 1 :]

    def _digest(self, *lists: list[Datum]) -> str:
        """SHA-256 (16 digits) of the lists' content: part, path, label and name of each item, in order."""
        content = hashlib.sha256()
        for part, items in zip(("train", "val", "test"), lists, strict=True):
            for item in items:
                line = f"{part}\t{self.relative(item)}\t{item.label}\t{item.classname}\n"
                content.update(line.encode(errors="surrogatepass"))  # names of files need not be Unicode
        return content.hexdigest()[:16]


class FewLabels:
    """Mixed in before FewShotDataset: `train_x` is its draw, `train_u` is the rest of the training images.

    DATASET.NUM_LABELED counts the labelled images of all classes together, NUM_SHOTS those of one class.
    Below 1, all are labelled. DATASET.ALL_AS_UNLABELED puts the labelled ones among the others too.
    """

    def __init__(self, cfg):
        super().__init__(cfg)
        parts = subsample_classes(*self._parts, subset=cfg.DATASET.SUBSAMPLE_CLASSES)
        self._train_u = parts[1]

    def _draw(self, train, val, cfg):
        shots = {"DATASET.NUM_SHOTS": self.labelled_per_class(train, cfg)}
        labelled, val = super()._draw(train, val, with_values(cfg, shots))
        taken = {item.impath for item in labelled}
        rest = [item for item in train if item.impath not in taken]
        self._parts = labelled, (labelled + rest if cfg.DATASET.ALL_AS_UNLABELED else rest)
        return labelled, val

    def labelled_per_class(self, train: list[Datum], cfg) -> int:
        """Labelled images a class; below 1: all. UserError if the keys contradict each other."""
        total, shots = cfg.DATASET.NUM_LABELED, cfg.DATASET.NUM_SHOTS
        if total < 1:
            return shots
        classes = self.get_num_classes(train)
        if total % classes or shots >= 1 and total != shots * classes:
            raise UserError(
                f"DATASET.NUM_LABELED is {total}, expected a multiple of its {classes} classes"
                + (f", with DATASET.NUM_SHOTS {shots}" if shots >= 1 else "")
            )
        return total // classes

    def metadata(self) -> dict:
        """What results.json records of it."""
        seen = f"{len(self.train_x)} labelled images, {len(self.train_u)} without labels"
        return super().metadata() | {"data_seen": seen}
