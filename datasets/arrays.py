"""Data sets that come as arrays: CIFAR-100's pickles and MNIST's idx files. Images are made when asked for."""

import gzip
import os
import zlib

import numpy as np
from PIL import Image

from dassl.data.datasets import Datum
from dassl.utils import MissingFile, PlainArray, UserError, brief, check_file, load_plain_pickle

from .mtil import words
from .readers import Lists

MOST_BYTES = 1 << 26  # of an idx file; MNIST's largest has 47 million
CIFAR_SHAPE = (3, 32, 32)
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049  # idx files of bytes: 3 dimensions, 1 dimension


class ArrayDatum(Datum):
    """An image of an array: (N, 3, H, W) or (N, H, W) of bytes that many share. `impath` is FILE/NUMBER."""

    def __init__(self, images: np.ndarray, number: int, file: str, label: int, classname: str):
        self._set(f"{file}/{number:05d}", label, 0, classname)
        self._images, self._number = images, number

    @property
    def file(self) -> str:
        return os.path.dirname(self._impath)

    def load_image(self, **reading) -> Image.Image:
        pixels = self._images[self._number]
        return Image.fromarray(pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels).convert("RGB")


def cifar100(folder: str) -> Lists:
    """train and test (bytes (N, 3072) as `data`, `fine_labels`), meta (`fine_label_names`): the Python version."""
    meta = os.path.join(folder, "meta")
    names = _entries(meta, fine_label_names=list)[0]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{meta}: fine_label_names is {brief(names)}, expected a list of texts")
    parts = []
    for part in ("train", "test"):
        path = os.path.join(folder, part)
        data, labels = _entries(path, data=PlainArray, fine_labels=list)
        images = getattr(data, "array", np.empty(0))  # a pickle may name an array and give it nothing
        if images.ndim != 2 or images.shape[1] != np.prod(CIFAR_SHAPE) or len(images) != len(labels):
            raise UserError(f"{path}: images of shape {images.shape} for {len(labels)} labels; expected (N, 3072)")
        parts.append(_items(images.reshape(-1, *CIFAR_SHAPE), labels, [words(n) for n in names], path))
    return parts[0], [], parts[1]


def _entries(path: str, **kinds: type) -> list:
    """Entries of the dictionary in a pickle, each of the kind expected."""
    tree = load_plain_pickle(path)
    for key, kind in kinds.items():
        if not isinstance(tree, dict) or not isinstance(tree.get(key), kind):
            raise UserError(f"{path}: no entry {key}, as the Python version of CIFAR-100 has it")
    return [tree[key] for key in kinds]


def mnist(folder: str, names: tuple[str, ...]) -> Lists:
    """{train,t10k}-{images-idx3,labels-idx1}-ubyte, unpacked or .gz."""
    parts = []
    for part in ("train", "t10k"):
        path, images = _idx(folder, f"{part}-images-idx3-ubyte", IMAGES_MAGIC)
        _, labels = _idx(folder, f"{part}-labels-idx1-ubyte", LABELS_MAGIC)
        if len(images) != len(labels):
            raise UserError(f"{path} has {len(images)} images, but there are {len(labels)} labels")
        parts.append(_items(images, labels.tolist(), list(names), path))
    return parts[0], [], parts[1]


def _idx(folder: str, name: str, magic: int) -> tuple[str, np.ndarray]:
    """An idx file of bytes: big-endian magic number and sizes, then the content."""
    path = next((p for p in (os.path.join(folder, name + end) for end in ("", ".gz")) if os.path.isfile(p)), None)
    if path is None:
        raise MissingFile(f"no file {os.path.join(folder, name)} (or .gz)")
    dims = magic % 256
    check_file(path, MOST_BYTES)
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        numbers = np.frombuffer(content, ">u4", 1 + dims).tolist()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is damaged or no idx file of {dims} dimensions: {error}") from error
    body = content[4 + 4 * dims :]
    if len(content) > MOST_BYTES or numbers[0] != magic or np.prod(numbers[1:], dtype=object) != len(body):
        raise UserError(f"{path} is damaged or no idx file of {dims} dimensions")
    return path, np.frombuffer(body, dtype=np.uint8).reshape(numbers[1:])


def _items(images: np.ndarray, labels: list[int], names: list[str], path: str) -> list[Datum]:
    for label in labels:
        if type(label) is not int or not 0 <= label < len(names):
            raise UserError(f"{path}: label {brief(label)}; expected 0 ... {len(names) - 1}")
    return [ArrayDatum(images, i, path, label, names[label]) for i, label in enumerate(labels)]
