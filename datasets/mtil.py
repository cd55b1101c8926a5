"""MTIL, multi-domain task-incremental learning (Zheng et al., ICCV 2023; ConDU, arXiv 2503.10705), as a base class.

A task is a data set with training and test images and no validation images: the official lists, or a seeded
80/20 split where there are none. Few-shot MTIL keeps k training images a class, drawn as everywhere else in
this project; the original takes the first k met in a shuffled pass instead, which no seed reproduces. These
splits are not CoOp's: a model trained on one must not be tested on the other.

Below it the readers of official lists and of folders that are split by a seed, in the layouts that torchvision's data
sets expect. Each gives (training, [], test); names have blanks for underscores.
"""

import os
import re

import numpy as np

from dassl.data.datasets import Datum
from dassl.utils import MissingFile, UserError, read_json

from .base import FewShotDataset
from .matlab import mat_variable
from .mtil_words import FLOWER_NAMES
from .readers import Lists, listed, read_lines


class MtilDataset(FewShotDataset):
    """A task of a stream. Class attributes to declare, beside those of FewShotDataset:

    `task`: its name in the stream. `prompts`: templates; the first one trains, evaluation averages all. `lists`: a
    function of the data set's and the image folder -> ([training], [], [test]), or `read` is overridden; labels are
    0, 1, ... in class order.
    """

    task = ""
    lists = None
    prompts: tuple[str, ...] | list[str] = ("a photo of a {}.",)

    def __init__(self, cfg):
        self.prompts = list(self.prompts)
        self.templates = dict.fromkeys(self.templates, self.prompts[0])
        super().__init__(cfg)

    def read(self) -> Lists:
        return self.lists(self.dataset_dir, self.image_dir) if self.lists else super().read()

    def metadata(self) -> dict:
        """What results.json records of it."""
        return super().metadata() | {"task": self.task, "prompts": self.prompts}


SPLIT_SEED = 42
TRAIN_PART = 0.8


def words(name: str) -> str:
    """A class name as prompts have it."""
    return name.replace("_", " ")


def seeded_order(n: int, seed: int = SPLIT_SEED) -> list[int]:
    """The permutation of 0 ... n - 1 that torch's CPU `randperm` gives for a seed, whatever torch's version.

    From MT19937's 32-bit outputs z: for i = 0, 1, ... swap place i with place i + z_i mod (n - i).
    """
    outputs = np.random.RandomState(seed).randint(0, 2**32, size=max(n - 1, 0), dtype=np.uint32)
    order = list(range(n))
    for i, z in enumerate(outputs.tolist()):
        j = i + z % (n - i)
        order[i], order[j] = order[j], order[i]
    return order


def seeded_split(items: list[Datum]) -> Lists:
    """80 % of the images, rounded down, for training and the rest for the test, by `seeded_order`."""
    order = seeded_order(len(items))
    cut = int(TRAIN_PART * len(items))
    return [items[i] for i in order[:cut]], [], [items[i] for i in order[cut:]]


def train_and_test(image_dir: str, items: dict[str, list[tuple[str, int, str]]]) -> Lists:
    """Lists of items (path, label, class name) by the file that names them: that of training first."""
    train, test = [listed(image_dir, some, source) for source, some in items.items()]
    return train, [], test


def texture_lists(folder: str, image_dir: str) -> Lists:
    """DTD, partition 1: labels/{train,test}1.txt with lines "banded/banded_0002.jpg"."""
    sources = [os.path.join(folder, "labels", f"{part}1.txt") for part in ("train", "test")]
    paths = {source: [line.strip() for line in read_lines(source)] for source in sources}
    names = sorted({path.split("/")[0] for some in paths.values() for path in some})
    class_of = {name: (label, words(name)) for label, name in enumerate(names)}
    items = {source: [(path, *class_of[path.split("/")[0]]) for path in some] for source, some in paths.items()}
    return train_and_test(image_dir, items)


def pet_lists(folder: str, image_dir: str) -> Lists:
    """Oxford-IIIT Pets: annotations/{trainval,test}.txt with lines "Abyssinian_100 1 1 1" (image, class from 1)."""
    items = {}
    for part in ("trainval", "test"):
        source = os.path.join(folder, "annotations", f"{part}.txt")
        items[source] = []
        for line in read_lines(source):
            fields = line.split()
            if len(fields) != 4 or not re.fullmatch("[1-9][0-9]{0,3}", fields[1]):
                raise UserError(f"{source}: line {line!r}; expected image, class (from 1), species and breed")
            name = words(fields[0].rpartition("_")[0]).title()
            items[source].append((f"{fields[0]}.jpg", int(fields[1]) - 1, name))
    return train_and_test(image_dir, items)


def food_lists(folder: str, image_dir: str) -> Lists:
    """Food-101: meta/{train,test}.json, {class: ["apple_pie/1005649", ...]}."""
    items, classes = {}, None
    for part in ("train", "test"):
        source = os.path.join(folder, "meta", f"{part}.json")
        tree = read_json(source)
        if not isinstance(tree, dict) or not all(isinstance(paths, list) for paths in tree.values()):
            raise UserError(f"{source}: expected an object with a list of images for each class")
        classes = classes or sorted(tree)
        if classes != sorted(tree):
            raise UserError(f"{source} has other classes than train.json: {min(set(classes) ^ set(tree))}")
        items[source] = [(f"{p}.jpg", classes.index(name), words(name)) for name, paths in tree.items() for p in paths]
    return train_and_test(image_dir, items)


def flower_lists(folder: str, image_dir: str) -> Lists:
    """Flowers-102: imagelabels.mat (class from 1 of image 1, 2, ...), setid.mat (image numbers trnid and tstid)."""
    names, labels = FLOWER_NAMES, mat_variable(os.path.join(folder, "imagelabels.mat"), "labels")
    source = os.path.join(folder, "setid.mat")
    parts = []
    for key in ("trnid", "tstid"):
        items = []
        for number in mat_variable(source, key):
            kind = labels[int(number) - 1] if number in range(1, len(labels) + 1) else 0
            if kind not in range(1, len(names) + 1):
                raise UserError(f"{source}: for {key} {number} imagelabels.mat has classes outside 1 ... {len(names)}")
            items.append((f"image_{int(number):05d}.jpg", int(kind) - 1, words(names[int(kind) - 1])))
        parts.append(listed(image_dir, items, source))
    return parts[0], [], parts[1]


def car_lists(folder: str, image_dir: str) -> Lists:
    """Stanford Cars: devkit/{cars_meta,cars_train_annos}.mat and cars_test_annos_withlabels.mat (here or in devkit).

    Images in cars_train and cars_test, or in a folder of the same name inside, as one mirror has them.
    """
    names = [str(name) for name in mat_variable(os.path.join(folder, "devkit", "cars_meta.mat"), "class_names")]
    test = os.path.join(folder, "cars_test_annos_withlabels.mat")
    if not os.path.isfile(test) and os.path.isfile(inner := os.path.join(folder, "devkit", os.path.basename(test))):
        test = inner
    items = {}
    for part, source in (("cars_train", os.path.join(folder, "devkit", "cars_train_annos.mat")), ("cars_test", test)):
        images = f"{part}/{part}" if os.path.isdir(os.path.join(folder, part, part)) else part
        items[source] = []
        for record in mat_variable(source, "annotations", ("fname", "class")):
            name, kind = os.path.basename(str(record["fname"])), record["class"]
            if kind not in range(1, len(names) + 1):
                raise UserError(f"{source}: {name} has class {kind}; cars_meta.mat names {len(names)}")
            items[source].append((f"{images}/{name}", int(kind) - 1, words(names[int(kind) - 1])))
    return train_and_test(folder, items)


def place_folders(image_dir: str, names_file: str) -> list[Datum]:
    """SUN397: all <letter>/<class>[/<sub>]/sun_*.jpg, sorted by path; `names_file` has "/a/abbey" lines in label order.

    A name is the path without its letter: "abbey", "apartment building/outdoor".
    """
    items = []
    for label, line in enumerate(read_lines(names_file, once=True)):
        place = line.strip().strip("/")
        path = os.path.join(image_dir, place)
        if not os.path.isdir(path):
            raise MissingFile(f"no folder {path}, which {names_file} names")
        images = [name for name in os.listdir(path) if name.startswith("sun_") and name.endswith(".jpg")]
        items += [(f"{place}/{name}", label, words(place.partition("/")[2])) for name in images]
    return [Datum.listed(f"{image_dir}/{path}", label=label, classname=name) for path, label, name in sorted(items)]
