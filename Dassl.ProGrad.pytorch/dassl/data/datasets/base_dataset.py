"""The record of one image (Datum) and the base class of data sets (DatasetBase)."""

import copy
import os
import random
import tarfile
import zipfile

from dassl.utils import MissingFile, UserError, download_url, get_logger, read_image

from ..fewshot import few_shot, group_indices


class Datum:
    """One image: path, label (int), domain (int), class name. The file must exist (MissingFile).

    Pickles of other people hold this class by this module path and these four attributes; keep both.
    """

    def __init__(self, impath="", label=0, domain=0, classname=""):
        if not isinstance(impath, str):
            raise UserError(f"an image path is a str, but got {type(impath).__name__}: {impath!r}")
        if not os.path.isfile(impath):
            raise MissingFile(f'no image file "{impath}" ({_what_exists(impath)})')
        self._set(impath, label, domain, classname)

    @classmethod
    def listed(cls, impath, label=0, domain=0, classname=""):
        """A Datum whose file is known to exist, from a listing of its folder: no look at the disk."""
        datum = cls.__new__(cls)
        datum._set(impath, label, domain, classname)
        return datum

    def relabelled(self, label):
        """The same image with another label; no look at the disk."""
        other = copy.copy(self)
        other._label = label
        return other

    def _set(self, impath, label, domain, classname):
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    def picture(self, **reading):
        """The RGB PIL image, fully decoded; as `read_image`, whose further arguments are taken."""
        return read_image(self._impath, **reading)

    @property
    def file(self):
        """The file that holds the image: its path, unless many images share one file."""
        return self._impath

    @property
    def impath(self):
        return self._impath

    @property
    def label(self):
        return self._label

    @property
    def domain(self):
        return self._domain

    @property
    def classname(self):
        return self._classname

    def __repr__(self):
        return f"Datum({self._impath!r}, {self._label}, domain={self._domain}, classname={self._classname!r})"


def _what_exists(path):
    """For an error: how far down the path the disk agrees with it."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(folder):
        return f"its folder {folder} exists"
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return f"only {folder} exists; is the data root right?"


class DatasetBase:
    """Base class of data sets: four lists of Datum, and what follows from them.

    Methods may be used before __init__ is called: subclasses read, draw and cut first, then hand over the
    lists.
    """

    dataset_dir = ""  # folder below cfg.DATASET.ROOT
    domains = []  # names of all domains, where there are any

    def __init__(self, train_x=None, train_u=None, val=None, test=None):
        self._train_x = train_x  # labelled
        self._train_u = train_u  # unlabelled, optional
        self._val = val  # optional
        self._test = test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    @property
    def train_x(self):
        return self._train_x

    @property
    def train_u(self):
        return self._train_u

    @property
    def val(self):
        return self._val

    @property
    def test(self):
        return self._test

    @property
    def lab2cname(self):
        return self._lab2cname

    @property
    def classnames(self):
        return self._classnames

    @property
    def num_classes(self):
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source):
        """Largest label + 1."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source):
        """({label: name}, names in label order); a label with two names keeps the first."""
        names = {}
        for item in data_source:
            names.setdefault(item.label, item.classname)
        mapping = {label: names[label] for label in sorted(names)}
        return mapping, list(mapping.values())

    def check_input_domains(self, source_domains, target_domains):
        """Both must be non-empty and known."""
        if not source_domains or not target_domains:
            raise UserError(
                "source and target domains must both be given, "
                f"but got {list(source_domains)} and {list(target_domains)}"
            )
        self.is_input_domain_valid(source_domains)
        self.is_input_domain_valid(target_domains)

    def is_input_domain_valid(self, input_domains):
        for domain in input_domains:
            if domain not in self.domains:
                raise UserError(f"Input domain must belong to {self.domains}, but got [{domain}]")

    def split_dataset_by_label(self, data_source):
        """{label: items}, labels in order of first appearance."""
        return _split(data_source, [item.label for item in data_source])

    def split_dataset_by_domain(self, data_source):
        """{domain: items}, domains in order of first appearance."""
        return _split(data_source, [item.domain for item in data_source])

    def generate_fewshot_dataset(self, *data_sources, num_shots=-1, repeat=False):
        """num_shots items a class of each list, drawn from Python's global `random`.

        A class with fewer items gives all of them, or num_shots with replacement if `repeat`. num_shots < 1
        returns what was given. One list in: a list; several: a list of lists.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        get_logger().info(f"Creating a {num_shots}-shot dataset")
        short = "repeat" if repeat else "all"
        drawn = [few_shot(source, num_shots, random, short) for source in data_sources]
        return drawn[0] if len(drawn) == 1 else drawn

    def download_data(self, url, dst, from_gdrive=True):
        """Fetch an archive (.zip, .tar, .tar.gz) to `dst` and unpack it beside itself."""
        kinds = (".zip", ".tar", ".tar.gz")
        if not str(dst).endswith(kinds):
            raise NotImplementedError(f"an archive is one of {', '.join(kinds)}, but got {dst}")
        folder = os.path.dirname(os.path.abspath(dst))
        os.makedirs(folder, exist_ok=True)
        if from_gdrive:
            _fetch_from_drive(url, dst)
        else:
            download_url(url, dst)
        get_logger().info("Extracting file ...")
        if str(dst).endswith(".zip"):
            with zipfile.ZipFile(dst) as archive:
                archive.extractall(folder)
        else:
            with tarfile.open(dst) as archive:
                archive.extractall(folder, filter="data")  # refuses paths that leave the folder


def _split(items, keys):
    return {key: [items[i] for i in indices] for key, indices in group_indices(keys).items()}


def _fetch_from_drive(url, dst):
    try:
        import gdown
    except ImportError as error:
        raise UserError(f"fetching {url} from Google Drive needs the package gdown (pip install gdown)") from error
    gdown.download(url, str(dst), quiet=False)
