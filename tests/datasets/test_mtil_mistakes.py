"""MTIL's tasks: what is said when a folder is not as it should be."""

import numpy as np
import pytest

import datasets
from dassl.data.datasets import build_dataset
from dassl.utils import MissingFile, UserError
from tests.fixtures.image_folders import config
from tests.fixtures.mtil_folders import WRITERS, python2_pickle

datasets.register_all()


def built(root, task):
    return build_dataset(config(root, f"Mtil{task}"))


def spoil_text(path, text):
    return lambda folder: (folder / path).write_text(text)


def remove(path):
    return lambda folder: (folder / path).unlink()


def cifar(part, **entries):
    return lambda folder: (folder / part).write_bytes(python2_pickle(entries))


def matlab(path, **entries):
    def write(folder):
        from scipy.io import savemat

        savemat(folder / path, entries)

    return write


MISTAKES = [
    ("Aircraft", remove("images/0000012.jpg"), MissingFile, ["1 of the 6 images", "images_variant_test.txt"]),
    ("DTD", remove("labels/train1.txt"), MissingFile, ["train1.txt", "robots.ox.ac.uk"]),
    ("DTD", remove("images/banded/banded_0006.jpg"), MissingFile, ["1 of the 9", "test1.txt", "banded_0006"]),
    ("Food", spoil_text("meta/test.json", '{"pizza": []}'), UserError, ["test.json has other classes", "apple_pie"]),
    ("Food", spoil_text("meta/test.json", "[]"), UserError, ["test.json", "list of images for each class"]),
    ("OxfordPet", spoil_text("annotations/test.txt", "a_1 one 1 1"), UserError, ["test.txt", "'a_1 one 1 1'"]),
    ("Flowers", remove("setid.mat"), MissingFile, ["setid.mat", "robots.ox.ac.uk"]),
    ("Flowers", spoil_text("setid.mat", "<html>"), UserError, ["setid.mat is damaged or no MATLAB file"]),
    ("Flowers", matlab("setid.mat", train=[1]), UserError, ["setid.mat has no variable trnid"]),
    ("Flowers", matlab("imagelabels.mat", labels=[103] * 9), UserError, ["classes outside 1 ... 102"]),
    ("StanfordCars", remove("cars_test_annos_withlabels.mat"), MissingFile, ["cars_test_annos_withlabels.mat"]),
    ("StanfordCars", remove("cars_test/00003.jpg"), MissingFile, ["1 of the 9", "cars_test/00003.jpg"]),
    ("SUN397", remove("ClassName.txt"), MissingFile, ["ClassName.txt", "huggingface.co"]),
    ("SUN397", spoil_text("ClassName.txt", "/z/zoo\n"), MissingFile, ["z/zoo", "ClassName.txt"]),
    ("SUN397", spoil_text("ClassName.txt", "/z/zoo\n/z/zoo\n"), UserError, ["'/z/zoo' stands there twice"]),
    ("MNIST", remove("t10k-labels-idx1-ubyte"), MissingFile, ["t10k-labels-idx1-ubyte (or .gz)"]),
    ("MNIST", spoil_text("t10k-images-idx3-ubyte", "<html>"), UserError, ["damaged or no idx file of 3"]),
    ("MNIST", spoil_text("t10k-images-idx3-ubyte", ""), UserError, ["damaged or no idx file of 3"]),
    ("CIFAR100", remove("meta"), MissingFile, ["meta"]),
    ("CIFAR100", spoil_text("test", "<html>"), UserError, ["damaged or no pickle of plain data"]),
    ("CIFAR100", cifar("test", labels=[]), UserError, ["no entry data", "CIFAR-100"]),
    (
        "CIFAR100",
        cifar("test", data=np.zeros((2, 3072), np.uint8), fine_labels=[0, 7]),
        UserError,
        ["label 7; expected 0 ... 1"],
    ),
    (
        "CIFAR100",
        cifar("test", data=np.zeros((2, 3000), np.uint8), fine_labels=[0, 1]),
        UserError,
        ["(2, 3000)", "expected (N, 3072)"],
    ),
]


@pytest.mark.parametrize(("task", "spoil", "error", "words"), MISTAKES)
def test_a_mistake_is_one_clear_error(tmp_path, task, spoil, error, words):
    spoil(WRITERS[task](tmp_path))
    with pytest.raises(error) as caught:
        built(tmp_path, task)
    for word in (f"Mtil{task}: ", *words):
        assert word in str(caught.value)


def test_a_class_without_training_images_is_refused(tmp_path):
    folder = WRITERS["DTD"](tmp_path)
    lines = (folder / "labels" / "train1.txt").read_text().splitlines()
    (folder / "labels" / "train1.txt").write_text("\n".join(line for line in lines if "blotchy" not in line))
    with pytest.raises(UserError, match=r"MtilDTD: .*dtd: train_x: .*label 1 has no training images"):
        built(tmp_path, "DTD")


def test_unreadable_images_are_named_when_they_are_opened(tmp_path):
    folder = WRITERS["OxfordPet"](tmp_path)
    (folder / "images" / "Abyssinian_200.jpg").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match=r"Abyssinian_200\.jpg.* cannot be read"):
        built(tmp_path, "OxfordPet").test[0].load_image()
