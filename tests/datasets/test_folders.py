"""Data sets that bring no split file: ImageNet and FGVC Aircraft, from tiny folders in their real layouts."""

import os
import random

import pytest

import datasets
from dassl.data.datasets import build_dataset
from dassl.utils import MissingFile, UserError
from tests.fixtures.image_folders import (
    config,
    expect,
    triples,
    write_image,
    write_imagenet,
)

datasets.register_all()


# --- ImageNet


def test_imagenet_folders(tmp_path):
    folder = write_imagenet(tmp_path)
    for stray in (".DS_Store", "notes.txt"):
        (tmp_path / "imagenet" / "images" / "train" / stray).touch()
        (tmp_path / "imagenet" / "images" / "val" / "n02" / stray).touch()
    (tmp_path / "imagenet" / "images" / "train" / ".hidden").mkdir()
    dataset = build_dataset(config(tmp_path, "ImageNet"))
    names = [("n01", "tench"), ("n02", "great white shark"), ("n03", "hen")]

    def listed(part, count):
        return [
            [f"{part}/{wnid}/{wnid}_{i}.JPEG", c, name] for c, (wnid, name) in enumerate(names) for i in range(count)
        ]

    assert triples(dataset.train_x, os.path.join(folder, "images")) == listed("train", 5)
    assert triples(dataset.test, os.path.join(folder, "images")) == listed("val", 2)
    assert dataset.val is dataset.test
    assert not dataset.has_val
    assert dataset.template == "a photo of a {}."


def test_imagenet_few_shot_draws_training_images_only(tmp_path):
    write_imagenet(tmp_path)
    keys = {"DATASET__NUM_SHOTS": 2, "DATASET__SUBSAMPLE_CLASSES": "base"}
    dataset = build_dataset(config(tmp_path, "ImageNet", **keys))
    assert [len(part) for part in (dataset.train_x, dataset.val, dataset.test)] == [4, 4, 4]
    assert dataset.val is dataset.test
    assert dataset.classnames == ["tench", "great white shark"]
    rng = random.Random(1)
    expected = [f"train/{w}/{w}_{i}.JPEG" for w in ("n01", "n02", "n03") for i in rng.sample(range(5), 2)]
    assert dataset.drawn["train"] == expected
    assert dataset.drawn["val"] == "test"


def test_imagenet_draw_does_not_depend_on_the_order_of_writing(tmp_path):
    classes = (("n01", "tench"), ("n02", "shark"))
    write_imagenet(tmp_path / "a", classes=classes)
    for wnid, _ in reversed(classes):
        for part, count in (("val", 2), ("train", 5)):
            for i in reversed(range(count)):
                write_image(str(tmp_path / "b" / "imagenet" / "images" / part / wnid / f"{wnid}_{i}.JPEG"))
    (tmp_path / "b" / "imagenet" / "classnames.txt").write_text("n01 tench\nn02 shark\n")
    drawn = [build_dataset(config(tmp_path / r, "ImageNet", DATASET__NUM_SHOTS=2)).drawn for r in "ab"]
    assert drawn[0] == drawn[1]


def test_imagenet_mistakes(tmp_path):
    folder = tmp_path / "imagenet"
    write_imagenet(tmp_path)
    images = folder / "images"
    (images / "val" / "n03").rename(folder / "kept")
    expect(tmp_path, UserError, "same class folders", "n03", name="ImageNet")
    (images / "val" / "n03").mkdir()
    expect(tmp_path, UserError, "n03 holds no images", name="ImageNet")
    for path in (images / "val").rglob("*.JPEG"):
        path.rename(images / "val" / path.name)
    for path in (images / "val").glob("n0?"):
        path.rmdir()
    expect(tmp_path, UserError, "val has no class folders", "sorted into one folder a class", name="ImageNet")
    (images / "train" / "n04").mkdir()
    expect(tmp_path, UserError, "1 folders are not in classnames.txt: n04", name="ImageNet")
    (images / "val").rename(folder / "validation")
    expect(tmp_path, MissingFile, "no folder val", "image-net.org", name="ImageNet")
    for content, words in (
        ("n01 tench\nn02\n", "line 2: 'n02' has no name"),
        ("n01 tench\n\nn02 hen\nn01 hen\n", "line 4: 'n01' stands there twice"),
        ("n01 tench\n".encode("utf-16"), "classnames.txt\" is no text in UTF-8"),
    ):
        (folder / "classnames.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
        expect(tmp_path, UserError, words, name="ImageNet")
    (folder / "classnames.txt").unlink()
    expect(tmp_path, MissingFile, "classnames.txt", "drive.google.com", name="ImageNet")


@pytest.mark.parametrize(
    "lines", ["n01 tench\nn02 great shark\n", "n01\ttench\n\nn02\tgreat shark", "n01  tench \nn02 great shark"]
)
@pytest.mark.parametrize(("mark", "end"), [("", "\n"), ("\ufeff", "\r\n")])
def test_class_names_as_editors_save_them(tmp_path, lines, mark, end):
    write_imagenet(tmp_path, classes=(("n01", ""), ("n02", "")))
    names = tmp_path / "imagenet" / "classnames.txt"
    names.write_bytes((mark + lines.replace("\n", end)).encode())
    assert build_dataset(config(tmp_path, "ImageNet")).classnames == ["tench", "great shark"]


# --- FGVC Aircraft


@pytest.mark.parametrize("place", ["fgvc_aircraft", "fgvc-aircraft-2013b/data"])
def test_aircraft_lists(tmp_path, place):
    folder = tmp_path / place
    names = ["F/A-18", "Boeing 737-200"]  # a slash, a blank; label order is that of variants.txt
    for i in range(6):
        write_image(str(folder / "images" / f"{i:07}.jpg"))
    (folder / "variants.txt").write_text("\n".join(names) + "\n")
    for part, ids in (("train", (0, 1)), ("val", (2, 3)), ("test", (4, 5))):
        lines = [f"{i:07} {names[i % 2]}" for i in ids]
        (folder / f"images_variant_{part}.txt").write_text("\n".join(lines))
    dataset = build_dataset(config(tmp_path, "FGVCAircraft", DATASET__NUM_SHOTS=1))
    assert dataset.classnames == names
    assert triples(dataset.test, folder) == [
        ["images/0000004.jpg", 0, names[0]],
        ["images/0000005.jpg", 1, names[1]],
    ]
    assert dataset.template == "a photo of a {}, a type of aircraft."
    (folder / "images" / "0000003.jpg").unlink()
    expect(tmp_path, MissingFile, "1 of the 2 images", "images_variant_val.txt", name="FGVCAircraft")
    (folder / "images_variant_train.txt").write_text("0000000 F/A-19")
    expect(tmp_path, UserError, "F/A-19", "expected an image and a line of variants.txt", name="FGVCAircraft")
    (folder / "variants.txt").write_text("\n".join(names + names[:1]))
    expect(tmp_path, UserError, "variants.txt: 'F/A-18' stands there twice", name="FGVCAircraft")
    (folder / "variants.txt").unlink()
    expect(tmp_path, MissingFile, "variants.txt", name="FGVCAircraft")
