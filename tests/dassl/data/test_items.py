"""Which lists of images are a data set, and what is said of odd ones."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dassl.data import build_data_loader, subsample_classes
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset, check_items
from dassl.utils import UserError
from mergetune.clip_trainer import ClipTrainer
from tests.fixtures.image_folders import config, write_image

NAMES = ("cat", "dog", "emu")
GOOD = [(label, name) for label, name in enumerate(NAMES) for _ in range(2)]


def items(pairs, folder="a"):
    return [Datum.listed(f"/{folder}/{i}.jpg", label, classname=name) for i, (label, name) in enumerate(pairs)]


def refused(train, test, *words, **parts):
    with pytest.raises(UserError) as caught:
        DatasetBase(train_x=train, test=test, **parts)
    for word in ("DatasetBase", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ([], ["no training images"]),
        ([(1, "cat"), (2, "dog"), (3, "emu")], ["label 0 has no training images", "label 3, class 'emu', /a/2.jpg"]),
        ([(0, "cat"), (2, "dog")], ["label 1 has no training images", "label 2, class 'dog', /a/1.jpg"]),
        ([(0, "cat"), (-1, "dog")], ["train_x: label -1, class 'dog', /a/1.jpg: expected labels 0, 1, ..."]),
        ([(0, "cat"), ("1", "dog")], ["label '1', class 'dog', /a/1.jpg", "its label is a str"]),
        ([(0, "cat"), (1.0, "dog")], ["label 1.0, class 'dog', /a/1.jpg", "its label is a float"]),
        ([(0, "cat"), (1, "dog"), (1.0, "dog")], ["label 1.0, class 'dog', /a/2.jpg"]),
        ([(0, "cat"), (torch.tensor(1), "dog")], ["/a/1.jpg", "its label is a Tensor"]),
        ([(0, "cat"), (None, "dog")], ["/a/1.jpg", "its label is a NoneType"]),
        ([(0, "cat"), (1, 7)], ["label 1, class 7, /a/1.jpg", "its class name is a int"]),
        ([(0, "cat"), (1, ["dog"])], ["/a/1.jpg", "its class name is a list"]),
        ([(0, "cat"), (1, None)], ["/a/1.jpg", "its class name is a NoneType"]),
        ([(0, "cat"), (1, "")], ["label 1, class '', /a/1.jpg", "no class name"]),
        ([(0, "cat"), (1, "caf\udce9")], ["label 1, class 'caf\\udce9', /a/1.jpg", "no Unicode text"]),
        ([(0, "cat"), (1, "dog"), (1, "emu")], ["class 'emu', /a/2.jpg: label 1 is 'dog' elsewhere"]),
    ],
)
def test_training_images_that_are_no_data_set(train, words):
    refused(items(train), items([(0, "cat")], "b"), *words)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([(0, "cat"), (3, "fox")], ["label 3, class 'fox', /b/1.jpg: label 3 has no training images"]),
        ([(0, "cat"), (-1, "")], ["label -1, class '', /b/1.jpg: expected labels 0, 1, ..."]),
        ([(0, "cat"), (1, "hound")], ["class 'hound', /b/1.jpg", "label 1 is 'dog' in train_x"]),
        ([(0, "cat"), (0, "dog")], ["class 'dog', /b/1.jpg: label 0 is 'cat' elsewhere"]),
        ([(0, "cat"), (np.float32(1), "dog")], ["its label is a float32"]),
    ],
)
@pytest.mark.parametrize("part", ["val", "test"])
def test_test_and_validation_images_that_do_not_go_with_the_training_images(part, pairs, words):
    train = items(GOOD)
    parts = {"val": items(GOOD, "c"), "test": items(GOOD, "d")} | {part: items(pairs, "b")}
    refused(train, parts["test"], *words, part, val=parts["val"])


def test_what_is_no_datum_is_refused():
    refused([*items(GOOD), ("/a/9.jpg", 0)], items(GOOD), "train_x holds ('/a/9.jpg', 0), expected a Datum")
    refused(items(GOOD), ["/a/9.jpg"], "test holds '/a/9.jpg', expected a Datum")
    refused(items(GOOD), items(GOOD), "train_u holds 3, expected a Datum", train_u=[3])
    refused(items(GOOD), items(GOOD), "train_u: label '?'", "its label is a str", train_u=items([("?", "")]))


def test_what_data_sets_written_for_dassl_have():
    train, test = items(GOOD), items(GOOD, "b")
    for label, name in ((-1, ""), (0, ""), (9, "unknown")):  # images without labels
        assert DatasetBase(train_x=train, train_u=items([(label, name)], "c"), test=test).num_classes == 3
    unnamed = items([(label, "") for label, _ in GOOD])
    assert DatasetBase(train_x=unnamed, test=unnamed).classnames == ["", "", ""]
    DatasetBase(train_x=train, test=unnamed)
    new = subsample_classes(test, subset="new")  # trained on all classes, tested on the new ones, from 0 on
    assert [item.label for item in new] == [0, 0]
    assert DatasetBase(train_x=train, val=test, test=new).classnames == list(NAMES)


def test_a_class_of_another_base_is_looked_at_too(monkeypatch):
    lists = SimpleNamespace(train_x=items([(1, "cat")]), val=None, test=items([(1, "cat")]))
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "Foreign", lambda cfg: lists)
    with pytest.raises(UserError, match="Foreign: train_x: label 1, .*label 0 has no training images"):
        build_dataset(config("", "Foreign"))


def test_prompts_need_names():
    trainer = SimpleNamespace(classnames=["", ""], cfg=config("", "Own", TRAINER__NAME="CoOp"))
    with pytest.raises(UserError, match=r"CoOp needs class names, the data set gives \['', ''\]"):
        ClipTrainer.build_backbone(trainer)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.int64])
def test_labels_of_numpy_are_labels(tmp_path, kind):
    paths = [str(tmp_path / f"{i}.png") for i in range(200)]
    write_image(paths[0])
    train = [Datum.listed(path, kind(i % 128), classname=f"class {i % 128}") for i, path in enumerate(paths)]
    base = DatasetBase(train_x=train, test=train)
    assert base.num_classes == 128 and type(base.num_classes) is int and list(base.lab2cname) == list(range(128))
    cfg = config(tmp_path, "Own")
    loader = build_data_loader(cfg, data_source=[Datum(paths[0], kind(5))], batch_size=1, is_train=False)
    assert type(loader.dataset[0]["label"]) is int


def test_what_is_odd_is_said(caplog):
    train, test = items([(0, "crane"), (1, "crane"), (2, "emu")]), items([(0, "crane"), (1, "crane")], "b")
    DatasetBase(train_x=train, val=test, test=test)
    assert [record.message for record in caplog.records] == [
        "DatasetBase: no prompt tells apart classes of one name: labels 0 and 1, 'crane'"
    ]
    caplog.clear()
    DatasetBase(train_x=items(GOOD), val=items(GOOD[:3], "c"), test=[*items(GOOD[:2]), *items(GOOD[2:3], "c") * 2])
    assert [record.message.removeprefix("DatasetBase: ") for record in caplog.records] == [
        "1 of 4 test images stand in the list more than once",
        "2 images are in both the training and the test list: /a/0.jpg",
        "1 images are in both the validation and the test list: /c/0.jpg",
    ]


def test_one_odd_item_behind_many_is_named():
    train = items([(i % 3, NAMES[i % 3]) for i in range(30_000)])
    train[29_999] = Datum.listed("/a/last.jpg", 2.5, classname="emu")
    with pytest.raises(UserError, match=r"Mine: train_x: label 2\.5, class 'emu', /a/last\.jpg"):
        check_items("Mine", train)
