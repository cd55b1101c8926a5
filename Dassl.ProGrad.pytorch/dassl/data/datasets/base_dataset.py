"""The record of one image (Datum) and the base class of data sets (DatasetBase)."""

import copy
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn

from dassl.utils import MissingFile, UserError, brief, download_url, get_logger, read_image
from dassl.utils.progress import progress

from ..fewshot import few_shot, group_indices

if TYPE_CHECKING:
    from PIL import Image


class Datum:
    """One image: path, label (int), domain (int), class name. The file must exist (MissingFile).

    Pickles of other people hold this class by this module path and these four attributes; keep both.
    """

    def __init__(self, impath: str = "", label: int = 0, domain: int = 0, classname: str = ""):
        if not isinstance(impath, str):
            raise UserError(f"an image path is a str, but got {type(impath).__name__}: {impath!r}")
        if not os.path.isfile(impath):
            raise MissingFile(f'no image file "{impath}" ({_what_exists(impath)})')
        self._set(impath, label, domain, classname)

    @classmethod
    def listed(cls, impath: str, label: int = 0, domain: int = 0, classname: str = "") -> "Datum":
        """A Datum whose file is known to exist, from a listing of its folder: no look at the disk."""
        datum = cls.__new__(cls)
        datum._set(impath, label, domain, classname)
        return datum

    def relabelled(self, label: int) -> "Datum":
        """The same image with another label; no look at the disk."""
        other = copy.copy(self)
        other._label = label
        return other

    def _set(self, impath, label, domain, classname):
        self._impath = impath
        self._label = int(label) if isinstance(label, Integral) else label  # numpy's small ones overflow
        self._domain = domain
        self._classname = classname

    def load_image(self, **reading) -> "Image.Image":
        """The RGB PIL image, fully decoded; as `read_image`, whose further arguments are taken."""
        return read_image(self._impath, **reading)

    @property
    def file(self) -> str:
        """The file that holds the image: its path, unless many images share one file."""
        return self._impath

    impath = property(attrgetter("_impath"))
    label = property(attrgetter("_label"))
    domain = property(attrgetter("_domain"))
    classname = property(attrgetter("_classname"))

    def __repr__(self):
        return f"Datum({self._impath!r}, {self._label}, domain={self._domain}, classname={self._classname!r})"


Items = Sequence[Datum]


def _what_exists(path):
    """For an error: how far down the path the disk agrees with it."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(folder):
        return f"its folder {folder} exists"
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return f"only {folder} exists; is the data root right?"


def check_items(
    name: str,
    train_x: Sequence | None,
    train_u: Sequence | None = (),
    val: Sequence | None = (),
    test: Sequence | None = (),
) -> None:
    """UserError for lists of Datum that are no data set; it names the label, the class and the file.

    Labels are whole numbers: in train_x 0, 1, ... without gaps, in val and test some of these, in train_u any, such as
    -1. Within a list a label has one name, a text; all names of train_x may be empty, which CLIP's trainers cannot
    use. In val and test a label has the name it has in train_x, unless the list is the new half of the classes,
    relabelled 0, 1, ... .
    """
    if not train_x:
        raise UserError(f"{name}: no training images")
    trained = _first_items(f"{name}: train_x", train_x)
    _first_items(f"{name}: train_u", train_u, labelled=False)
    last, named = trained[max(trained)], any(item.classname for item in trained.values())
    for label in range(len(trained)):
        if label not in trained:
            _refuse(f"{name}: train_x", last, f"the largest label, but label {label} has no training images")
        if named and not trained[label].classname.strip():
            _refuse(f"{name}: train_x", trained[label], "no class name")
    names = [trained[label].classname for label in range(len(trained))]
    new = dict(enumerate(names[(len(names) + 1) // 2 :]))
    for part, items in ((f"{name}: val", val), (f"{name}: test", test)):
        firsts = _first_items(part, items)
        is_new = {label: item.classname for label, item in firsts.items()} == new
        for label, item in firsts.items():
            if label not in trained:
                _refuse(part, item, f"label {label} has no training images")
            if item.classname not in ("", names[label]) and names[label] and not is_new:
                _refuse(part, item, f"label {label} is {names[label]!r} in train_x")


def _first_items(part: str, items: Sequence | None, labelled: bool = True) -> dict:
    """{label: the first of its items} of a list, whose items are what a part of a data set may hold."""
    firsts: dict = {}
    for item in items or ():
        if not (hasattr(item, "label") and hasattr(item, "classname")):
            raise UserError(f"{part} holds {brief(item)}, expected a Datum")
        label, classname = item.label, item.classname
        if isinstance(label, bool) or not isinstance(label, Integral):
            _refuse(part, item, f"its label is a {type(label).__name__}, expected a whole number: 0, 1, ...")
        if not isinstance(classname, str):
            _refuse(part, item, f"its class name is a {type(classname).__name__}, expected a text")
        if (first := firsts.setdefault(label, item)) is item:
            if any("\ud800" <= letter <= "\udfff" for letter in classname):  # of a folder whose name is no UTF-8
                _refuse(part, item, "its class name is no Unicode text; rename the folder")
            if labelled and label < 0:
                _refuse(part, item, "expected labels 0, 1, ...")
        elif labelled and classname != first.classname:
            _refuse(part, item, f"label {label} is {first.classname!r} elsewhere")
    return firsts


def _refuse(part: str, item, reason: str) -> NoReturn:
    raise UserError(f"{part}: label {item.label!r}, class {item.classname!r}, {item.impath}: {reason}")


def odd_items(train_x: Sequence, val: Sequence | None = (), test: Sequence | None = ()) -> Iterator[str]:
    """Lines on what a data set may have but seldom means: classes of one name, images that are shared or repeated."""
    first: dict[str, int] = {}
    pairs = sorted(set(map(attrgetter("label", "classname"), train_x)))
    alike = [(first[name], label, name) for label, name in pairs if name and first.setdefault(name, label) != label]
    if alike:
        named = "; ".join("labels {} and {}, {!r}".format(*some) for some in alike[:3])
        yield f"no prompt tells apart classes of one name: {named}{'; ...' if len(alike) > 3 else ''}"
    lists = {"training": train_x, "validation": () if val is test else val or (), "test": test or ()}
    paths = {part: {item.impath for item in items} for part, items in lists.items()}
    for part, others in (("test", ("training", "validation")), ("validation", ("training",))):
        items = lists[part]
        if len(paths[part]) < len(items):
            yield f"{len(items) - len(paths[part])} of {len(items):,} {part} images stand in the list more than once"
        for other in others:
            if (shared := paths[part] & paths[other]) and lists[other] is not items:
                yield f"{len(shared):,} images are in both the {other} and the {part} list: {min(shared)}"


def unreadable(items: Sequence[Datum], jobs: int = 1, **reading) -> list[str]:
    """What is wrong with each image that cannot be decoded. reading: as of Datum.load_image."""

    def trouble(item):
        try:
            item.load_image(**reading)
        except (UserError, OSError) as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        return list(filter(None, progress(pool.map(trouble, items), "opening images", total=len(items))))


class DatasetBase:
    """Base class of data sets: four lists of Datum, and what follows from them.

    Methods may be used before __init__ is called: subclasses read, draw and cut first, then hand over the
    lists.
    UserError: the lists are no data set (`check_items`). What is only odd (`odd_items`) is a warning.
    """

    dataset_dir = ""  # folder below cfg.DATASET.ROOT
    domains: Sequence[str] = []  # names of all domains, where there are any
    says_oddities = True  # of the lists handed over; False: a subclass says those of whole lists before it cuts them

    def __init__(self, train_x=None, train_u=None, val=None, test=None):
        check_items(type(self).__name__, train_x, train_u, val, test)
        if self.says_oddities:
            self.say_oddities(train_x, val, test)
        self._train_x = train_x  # labelled
        self._train_u = train_u  # unlabelled, optional
        self._val = val  # optional
        self._test = test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    def say_oddities(self, train_x: Items, val: Items | None, test: Items | None) -> None:
        for line in self.oddities(train_x, val, test):
            get_logger().warning(f"{type(self).__name__}: {line}")

    def oddities(self, train_x: Items, val: Items | None, test: Items | None) -> Iterator[str]:
        """Lines to warn of."""
        return odd_items(train_x, val, test)

    train_x = property(attrgetter("_train_x"))
    train_u = property(attrgetter("_train_u"))
    val = property(attrgetter("_val"))
    test = property(attrgetter("_test"))
    lab2cname = property(attrgetter("_lab2cname"))
    classnames = property(attrgetter("_classnames"))
    num_classes = property(attrgetter("_num_classes"))

    @staticmethod
    def get_num_classes(data_source: Items) -> int:
        """Largest label + 1."""
        return int(max(item.label for item in data_source)) + 1

    @staticmethod
    def get_lab2cname(data_source: Items) -> tuple[dict[int, str], list[str]]:
        """({label: name}, names in label order); a label with two names keeps the first."""
        names = {}
        for item in data_source:
            names.setdefault(item.label, item.classname)
        mapping = {int(label): names[label] for label in sorted(names)}
        return mapping, list(mapping.values())

    def check_input_domains(self, source_domains: Sequence[str], target_domains: Sequence[str]) -> None:
        """Both must be non-empty and known."""
        if not source_domains or not target_domains:
            raise UserError(
                "source and target domains must both be given, "
                f"but got {list(source_domains)} and {list(target_domains)}"
            )
        self.is_input_domain_valid(source_domains)
        self.is_input_domain_valid(target_domains)

    def is_input_domain_valid(self, input_domains: Sequence[str]) -> None:
        for domain in input_domains:
            if domain not in self.domains:
                raise UserError(f"Input domain must belong to {self.domains}, but got [{domain}]")

    def split_dataset_by_label(self, data_source: Items) -> dict[int, list[Datum]]:
        """{label: items}, labels in order of first appearance."""
        return _split(data_source, [item.label for item in data_source])

    def split_dataset_by_domain(self, data_source: Items) -> dict[int, list[Datum]]:
        """{domain: items}, domains in order of first appearance."""
        return _split(data_source, [item.domain for item in data_source])

    def generate_fewshot_dataset(self, *data_sources: Items, num_shots: int = -1, repeat: bool = False) -> Sequence:
        """num_shots items a class of each list, drawn from Python's global `random`.

        A class with fewer items gives all of them, or num_shots with replacement if `repeat`. num_shots < 1
        returns what was given. One list in: a list; several: a list of lists.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        get_logger().debug(f"Creating a {num_shots}-shot dataset")
        short = "repeat" if repeat else "all"
        drawn = [few_shot(source, num_shots, random, short) for source in data_sources]
        return drawn[0] if len(drawn) == 1 else drawn

    def download_data(self, url: str, dst: str | os.PathLike, from_gdrive: bool = True) -> None:
        """Fetch an archive (.zip, .tar, .tar.gz) to `dst` and unpack it beside itself."""
        folder = os.path.dirname(os.path.abspath(dst))
        os.makedirs(folder, exist_ok=True)
        if from_gdrive:
            import gdown  # pip install gdown

            gdown.download(url, str(dst), quiet=False)
        else:
            download_url(url, dst)
        get_logger().info("Extracting file ...")
        # refuses paths that leave the folder, as zip's
        safe: dict[str, Any] = {} if str(dst).endswith(".zip") else {"filter": "data"}
        shutil.unpack_archive(dst, folder, **safe)


def _split(items, keys):
    return {key: [items[i] for i in indices] for key, indices in group_indices(keys).items()}
