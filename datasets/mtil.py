"""MTIL, multi-domain task-incremental learning (Zheng et al., ICCV 2023; ConDU, arXiv 2503.10705), as a base class.

A task is a data set with training and test images and no validation images: the official lists, or a seeded
80/20 split where there are none. Few-shot MTIL keeps k training images a class, drawn as everywhere else in
this project; the original takes the first k met in a shuffled pass instead, which no seed reproduces. These
splits are not CoOp's: a model trained on one must not be tested on the other.

Below it the readers of official lists and of folders that are split by a seed, in the layouts that torchvision's data
sets expect. Each gives training and test images; names have blanks for underscores.
"""

import os
from collections.abc import Callable, Sequence

from dassl.data.datasets import Datum
from dassl.utils import MissingFile, UserError, read_json

from .base import FewShotDataset
from .matlab import mat_variable
from .mtil_words import FLOWER_NAMES
from .readers import Lists, listed, read_lines, read_listing


class MtilDataset(FewShotDataset):
    """A task of a stream. Class attributes to declare, beside those of FewShotDataset:

    `task`: its name in the stream. `prompts`: templates; the first one trains, evaluation averages all. `lists`: a
    function of the data set's and the image folder, whose first list is trained on and whose last is the test, or
    `read` is overridden; labels are 0, 1, ... in class order.
    """

    task = ""
    lists: Callable[[str, str], Sequence[list[Datum]]] | None = None
    prompts: tuple[str, ...] | list[str] = ("a photo of a {}.",)

    def __init__(self, cfg):
        self.prompts = list(self.prompts)
        self.templates = dict.fromkeys(self.templates, self.prompts[0])
        super().__init__(cfg)

    def read(self) -> Lists:
        if self.lists is None:
            return super().read()
        train, *_, test = self.lists(self.dataset_dir, self.image_dir)
        return train, [], test

    def metadata(self) -> dict:
        """What results.json records of it."""
        return super().metadata() | {"task": self.task, "prompts": self.prompts}


def words(name: str) -> str:
    """A class name as prompts have it."""
    return name.replace("_", " ")


def seeded_split(items: list) -> Lists:
    """80 % of the images, rounded down, for training and the rest for the test, in the order of torch's seed 42."""
    import torch  # late: --help of a command needs no PyTorch

    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(42)).tolist()
    cut = int(0.8 * len(items))
    return [items[i] for i in order[:cut]], [], [items[i] for i in order[cut:]]


def texture_lists(folder: str, image_dir: str) -> list[list[Datum]]:
    """DTD, partition 1: labels/{train,test}1.txt with lines "banded/banded_0002.jpg"."""
    sources = [os.path.join(folder, "labels", f"{part}1.txt") for part in ("train", "test")]
    names = sorted({line.strip().split("/")[0] for source in sources for line in read_lines(source)})

    def item(line: str) -> tuple[str, int, str]:
        name = line.split("/")[0]
        return line, names.index(name), words(name)

    return [read_listing(source, image_dir, item, "class/image") for source in sources]


def pet_lists(folder: str, image_dir: str) -> list[list[Datum]]:
    """Oxford-IIIT Pets: annotations/{trainval,test}.txt with lines "Abyssinian_100 1 1 1" (image, class from 1)."""

    def item(line: str) -> tuple[str, int, str]:
        image, number, _, _ = line.split()
        if int(number) < 1:
            raise ValueError(number)
        return f"{image}.jpg", int(number) - 1, words(image.rpartition("_")[0]).title()

    sources = [os.path.join(folder, "annotations", f"{part}.txt") for part in ("trainval", "test")]
    return [read_listing(source, image_dir, item, "image, class (from 1), species and breed") for source in sources]


def food_lists(folder: str, image_dir: str) -> list[list[Datum]]:
    """Food-101: meta/{train,test}.json, {class: ["apple_pie/1005649", ...]}."""
    lists, classes = [], None
    for part in ("train", "test"):
        source = os.path.join(folder, "meta", f"{part}.json")
        tree = read_json(source)
        if not isinstance(tree, dict) or not all(isinstance(paths, list) for paths in tree.values()):
            raise UserError(f"{source}: expected an object with a list of images for each class")
        classes = classes or sorted(tree)
        if classes != sorted(tree):
            raise UserError(f"{source} has other classes than train.json: {min(set(classes) ^ set(tree))}")
        items = [(f"{p}.jpg", classes.index(name), words(name)) for name, paths in tree.items() for p in paths]
        lists.append(listed(image_dir, items, source))
    return lists


def flower_lists(folder: str, image_dir: str) -> list[list[Datum]]:
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
    return parts


def car_lists(folder: str, image_dir: str) -> list[list[Datum]]:
    """Stanford Cars: devkit/{cars_meta,cars_train_annos}.mat and cars_test_annos_withlabels.mat (here or in devkit).

    Images in cars_train and cars_test, or in a folder of the same name inside, as one mirror has them.
    """
    names = [str(name) for name in mat_variable(os.path.join(folder, "devkit", "cars_meta.mat"), "class_names")]
    test = os.path.join(folder, "cars_test_annos_withlabels.mat")
    if not os.path.isfile(test) and os.path.isfile(inner := os.path.join(folder, "devkit", os.path.basename(test))):
        test = inner
    lists = []
    for part, source in (("cars_train", os.path.join(folder, "devkit", "cars_train_annos.mat")), ("cars_test", test)):
        images = f"{part}/{part}" if os.path.isdir(os.path.join(folder, part, part)) else part
        items = []
        for record in mat_variable(source, "annotations", ("fname", "class")):
            name, kind = os.path.basename(str(record["fname"])), record["class"]
            if kind not in range(1, len(names) + 1):
                raise UserError(f"{source}: {name} has class {kind}; cars_meta.mat names {len(names)}")
            items.append((f"{images}/{name}", int(kind) - 1, words(names[int(kind) - 1])))
        lists.append(listed(image_dir, items, source))
    return lists


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
