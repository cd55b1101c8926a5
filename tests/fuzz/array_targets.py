"""Readers of arrays and images: CIFAR, MNIST, .mat files, images."""

import gzip
import io
import pickle
import struct
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from dassl.utils import images as image_files
from dassl.utils import plain_pickle, read_image
from datasets import arrays, matlab
from tests.fuzz import hostile
from tests.fuzz.lines import relative
from tests.fuzz.mutate import mutated, tree
from tests.fuzz.oracle import Files, Target
from tests.fuzz.text_targets import images
from tests.fuzz.weight_targets import folder_files


@cache
def cifar() -> Files:
    def part(n):
        data = np.zeros((n, 3072), dtype=np.uint8)
        return pickle.dumps({"data": data, "fine_labels": list(range(n))}, 2)

    return {"meta": pickle.dumps({"fine_label_names": ["a", "b"]}, 2), "train": part(2), "test": part(1)}


@cache
def mnist() -> Files:
    files = {}
    for part, n in (("train", 2), ("t10k", 1)):
        files[f"{part}-images-idx3-ubyte"] = struct.pack(">IIII", 2051, n, 2, 2) + bytes(4 * n)
        files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(struct.pack(">II", 2049, n) + bytes(n), mtime=0)
    return files


def make_arrays(rng: Random) -> Files:
    files = dict(rng.choice((cifar, mnist))())
    name = rng.choice(list(files))
    if name in cifar() and rng.random() < 0.5:
        odd = rng.choice(hostile.pickles()) if rng.random() < 0.5 else pickle.dumps(
            tree(rng, {"data": np.zeros((1, 3072), rng.choice((np.uint8, np.float32))), "fine_labels": [0]}), 2)  # fmt: skip  # noqa: E501
        files[name] = odd
    elif name.endswith(".gz") and rng.random() < 0.2:
        files[name] = hostile.gzip_bomb()
    elif rng.random() < 0.9:
        files[name] = mutated(rng, name, files[name])
    return files


def read_arrays(folder: Path):
    if (folder / "meta").exists():
        return arrays.cifar100(str(folder))
    return arrays.mnist(str(folder), ("zero", "one"))


# variable and fields of each .mat file that is read
MATS = {"labels.mat": ("labels", ()), "trnid.mat": ("trnid", ()), "class_names.mat": ("class_names", ()),
        "annotations.mat": ("annotations", ("fname", "class"))}  # fmt: skip


@cache
def mats() -> Files:
    from scipy.io import savemat

    kind = [("fname", "O"), ("class", "O")]
    content = {"labels": [[1, 2]], "trnid": [[1]], "class_names": np.array([["Audi", "BMW"]], dtype=object),
               "annotations": np.array([[("a.jpg", 1), ("b.jpg", 1)]], dtype=kind)}  # fmt: skip

    def write(folder):
        for key, value in content.items():
            savemat(folder / f"{key}.mat", {key: value}, do_compression=key == "trnid")

    return folder_files(write)


def make_mat(rng: Random) -> Files:
    name, data = rng.choice(list(mats().items()))
    for _ in range(rng.choice((1, 1, 2))):
        data = mutated(rng, name, data)
    return {name: data}


def read_mat(folder: Path):
    name = next((path.name for path in folder.iterdir()), "labels.mat")
    return matlab.mat_variable(str(folder / name), *MATS[name])


@cache
def valid_images() -> list[bytes]:
    found = []
    for mode, kind, options in (
        ("RGB", "PNG", {}), ("L", "PNG", {}), ("P", "PNG", {}), ("RGBA", "PNG", {}), ("1", "PNG", {}), ("I;16", "PNG", {}),  # noqa: E501
        ("RGB", "JPEG", {}), ("CMYK", "JPEG", {}), ("L", "JPEG", {"progressive": True}), ("RGB", "BMP", {}),
        ("RGB", "GIF", {}), ("RGBA", "WEBP", {}), ("RGB", "WEBP", {"lossless": True}), ("RGB", "PPM", {}), ("L", "TIFF", {}),  # noqa: E501
        ("RGB", "TIFF", {"compression": "tiff_lzw"}), ("RGB", "TIFF", {"compression": "jpeg"}), ("RGB", "ICO", {}),
        ("RGB", "PDF", {}), ("RGB", "EPS", {}), ("RGB", "TGA", {}), ("RGB", "MPO", {}), ("RGB", "JPEG2000", {}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        Image.frombytes("RGB", (9, 7), bytes(range(189))).convert(mode).save(buffer, kind, **options)
        found.append(buffer.getvalue())
    return found


def make_image(rng: Random) -> Files:
    data = hostile.images(rng) if rng.random() < 0.3 else rng.choice(valid_images())
    return {"a.jpg": mutated(rng, "a.jpg", data, rng.choice(valid_images())) if rng.random() < 0.6 else data}


ARRAYS = [
    Target("arrays", make_arrays, read_arrays, (relative(arrays), relative(plain_pickle)), prepare=images, weight=3),
    Target("image", make_image, lambda folder: read_image(str(folder / "a.jpg")), (relative(image_files),), weight=6),
    Target("mat", make_mat, read_mat, (relative(matlab),), child=matlab.__file__),
]
