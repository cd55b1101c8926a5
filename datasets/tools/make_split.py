"""`python -m datasets make-split`: a split of one's own for a set whose published split file is not at hand.

It is made as the published ones were: 50 % training, 20 % validation and 30 % test images of each class, or
the official test list and a validation fifth of the official training list. It has another name, and another
content, than the published file, and every result says so.
"""

import itertools
import os
import random
from collections.abc import Callable, Sequence

from dassl.data import group_indices
from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import UserError, read_json, write_json

from ..matlab import mat_variable
from ..mtil import car_lists, pet_lists
from ..readers import class_folders, folder_images, listed, read_lines, read_listing

TRAIN, VAL = 0.5, 0.2
Parts = Sequence[list[Datum]]  # all images, or those of training and of the test

CALTECH = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
EUROSAT = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}


def folders(names: dict[str, str], skip: tuple[str, ...] = ()) -> Callable[[str, str], Parts]:
    """Class folders; `names` of those that are called otherwise."""

    def read(folder: str, images: str) -> Parts:
        kinds = [name for name in class_folders(images) if name not in skip]
        return [folder_images(images, kinds, {name: names.get(name, name) for name in kinds})]

    return read


def flowers(folder: str, images: str) -> Parts:
    names = read_json(os.path.join(folder, "cat_to_name.json"))
    labels = mat_variable(os.path.join(folder, "imagelabels.mat"), "labels")
    items = [(f"image_{i:05d}.jpg", int(k) - 1, names[str(int(k))]) for i, k in enumerate(labels, start=1)]
    return [listed(images, items, "imagelabels.mat")]


def pets(folder: str, images: str) -> Parts:
    return renamed(pet_lists(folder, images), lambda item: os.path.basename(item.impath).rpartition("_")[0].lower())


def cars(folder: str, images: str) -> Parts:
    def year_first(item: Datum) -> str:
        name, _, year = item.classname.rpartition(" ")
        return f"{year} {name}"

    return renamed(car_lists(folder, images), year_first)


def renamed(lists: list[list[Datum]], name: Callable[[Datum], str]) -> Parts:
    return tuple([Datum.listed(item.impath, item.label, classname=name(item)) for item in items] for items in lists)


def places(folder: str, images: str) -> Parts:
    """SUN397: ClassName.txt, Training_01.txt and Testing_01.txt, whose lines begin with a slash."""
    label_of = {line.strip(): label for label, line in enumerate(read_lines(os.path.join(folder, "ClassName.txt")))}

    def item(line: str) -> tuple[str, int, str]:
        place = os.path.dirname(line)
        return line[1:], label_of[place], " ".join(reversed(place.split("/")[2:]))

    sources = [os.path.join(folder, file) for file in ("Training_01.txt", "Testing_01.txt")]
    return tuple(read_listing(source, images, item, "an image of a class in ClassName.txt") for source in sources)


def actions(folder: str, images: str) -> Parts:
    """UCF101: ucfTrainTestlist/{classInd,trainlist01,testlist01}.txt; one image a video."""
    lists = os.path.join(folder, "ucfTrainTestlist")
    label_of = {line.split()[-1]: label for label, line in enumerate(read_lines(os.path.join(lists, "classInd.txt")))}

    def item(line: str) -> tuple[str, int, str]:
        action, video = line.split()[0].split("/")
        name = "".join(f"_{c}" if c.isupper() else c for c in action).lstrip("_")
        return f"{name}/{video.removesuffix('.avi')}.jpg", label_of[action], name

    sources = [os.path.join(lists, file) for file in ("trainlist01.txt", "testlist01.txt")]
    return tuple(read_listing(source, images, item, "a video of an action in classInd.txt") for source in sources)


READERS: dict[str, Callable[[str, str], Parts]] = {
    "Caltech101": folders(CALTECH, skip=("BACKGROUND_Google", "Faces_easy")),
    "DescribableTextures": folders({}),
    "EuroSAT": folders(EUROSAT),
    "Food101": folders({}),
    "OxfordFlowers": flowers,
    "OxfordPets": pets,
    "StanfordCars": cars,
    "SUN397": places,
    "UCF101": actions,
}


def make_split(name: str, root: str, seed: int = 1) -> str:
    """Write split_local_<name>.json beside the images; returns its path.

    UserError: the set needs no split, or has one already.
    """
    if name not in READERS:
        raise UserError(f"{name} has no split file to make; those with one are {', '.join(READERS)}")
    kind = DATASET_REGISTRY.get(name)
    data = kind.__new__(kind)
    with data.naming():
        folder, images = data.places(root)
    for file in (kind.split_file, kind.local_split()):
        if os.path.isfile(os.path.join(folder, file)):
            raise UserError(f"{name}: {os.path.join(folder, file)} is there already; nothing was made")
    first, *official = READERS[name](folder, images)
    rng = random.Random(seed)
    if official:
        (val, train), (test,) = _cut(first, (VAL,), rng), official
    else:
        train, val, test = _cut(first, (TRAIN, VAL), rng)
    content = {
        part: [[item.impath[len(images) + 1 :], item.label, item.classname] for item in items]
        for part, items in (("train", train), ("val", val), ("test", test))
    }
    path = os.path.join(folder, kind.local_split())
    write_json(content, path)
    return path


def _cut(items: list[Datum], parts: tuple[float, ...], rng: random.Random) -> list[list[Datum]]:
    """Class by class in the order of first appearance: these parts of it at random, and the rest."""
    lists: list[list[Datum]] = [[] for _ in (*parts, "rest")]
    for indices in group_indices(item.label for item in items).values():
        rng.shuffle(indices)
        ends = itertools.accumulate(round(part * len(indices)) for part in parts)
        cuts = [0, *ends, len(indices)]
        for chosen, (start, end) in zip(lists, itertools.pairwise(cuts), strict=True):
            chosen += [items[i] for i in indices[start:end]]
    return lists
