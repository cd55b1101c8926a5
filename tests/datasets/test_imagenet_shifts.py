"""ImageNet-V2, -Sketch, -A, -R and ObjectNet, from tiny folders in their layouts."""

import json
import os

import pytest

import datasets
import train
from dassl.config import get_cfg_default, merge_yaml
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from dassl.utils import MissingFile, UserError
from tests.conftest import ROOT
from tests.fixtures.image_folders import config, write_image

datasets.register_all()

NAMES = {f"n{i:02}": f"thing {i}" for i in range(12)}
WORDNET = {
    "ImageNetSketch": ("imagenet-sketch", "images"),
    "ImageNetA": ("imagenet-adversarial", "imagenet-a"),
    "ImageNetR": ("imagenet-rendition", "imagenet-r"),
}
STEMS = {
    "ImageNetV2": "imagenetv2",
    "ImageNetSketch": "imagenet_sketch",
    "ImageNetA": "imagenet_a",
    "ImageNetR": "imagenet_r",
    "ObjectNet": "objectnet",
}


def write_names(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in NAMES.items()))


def write_classes(folder, classes, count=2):
    for name in classes:
        for i in range(count):
            write_image(str(folder / name / f"{name}_{i}.jpg"), seed=i)


def write_v2(root):
    folder = root / "imagenetv2"
    write_names(folder)
    write_classes(folder / "imagenetv2-matched-frequency-format-val", map(str, range(12)))
    return folder / "imagenetv2-matched-frequency-format-val"


def write_objectnet(root):
    folder = root / "objectnet"
    write_classes(folder / "images", ["air_freshener", "alarm_clock", "backpack", "wheel"])
    names = {"backpack": "backpack", "alarm_clock": "analog clock"}
    (folder / "classes.json").write_text(json.dumps(names))
    return folder


def test_each_has_a_yaml():
    for name, stem in STEMS.items():
        cfg = get_cfg_default()
        merge_yaml(cfg, ROOT / "configs" / "datasets" / f"{stem}.yaml")
        assert name == cfg.DATASET.NAME and name in DATASET_REGISTRY.registered_names()


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("name", WORDNET)
def test_wordnet_folders_are_relabelled_from_zero(tmp_path, name, beside):
    folder, images = WORDNET[name]
    write_classes(tmp_path / folder / images, ["n11", "n02", "n07"])
    (tmp_path / folder / images / "README.txt").touch()
    write_names(tmp_path / (folder if beside else "imagenet"))
    data = build_dataset(config(tmp_path, name, DATASET__NUM_SHOTS=16))
    expected = [(f"{wnid}/{wnid}_{i}.jpg", k) for k, wnid in enumerate(("n02", "n07", "n11")) for i in range(2)]
    assert [(os.path.relpath(item.impath, tmp_path / folder / images), item.label) for item in data.test] == expected
    assert data.classnames == ["thing 2", "thing 7", "thing 11"]
    assert data.template == data.templates["coop"] == "a photo of a {}."
    assert data.val is None and not data.has_val and data.drawn["train"] == "all"  # shots are those of the training


def test_archives_as_they_unpack(tmp_path):
    for name, folder in (("ImageNetSketch", "sketch"), ("ImageNetA", "imagenet-a"), ("ImageNetR", "imagenet-r")):
        write_classes(tmp_path / folder, ["n02"])
        write_names(tmp_path / "imagenet")
        assert build_dataset(config(tmp_path, name)).classnames == ["thing 2"]


def test_folders_of_v2_are_numbers(tmp_path):
    write_v2(tmp_path)
    data = build_dataset(config(tmp_path, "ImageNetV2"))
    assert data.classnames == list(NAMES.values())
    assert all(item.impath.split("/")[-2] == str(item.label) for item in data.test) and len(data.test) == 24


def test_v2_in_wordnet_folders(tmp_path):
    write_names(tmp_path / "imagenetv2")
    write_classes(tmp_path / "imagenetv2", ["n00", "n10"])
    assert build_dataset(config(tmp_path, "ImageNetV2")).classnames == ["thing 0", "thing 10"]


def test_objectnet_is_the_classes_of_its_mapping_file(tmp_path):
    write_objectnet(tmp_path)
    data = build_dataset(config(tmp_path, "ObjectNet"))
    assert data.classnames == ["backpack", "analog clock"]
    assert [(item.impath.split("/")[-2], item.label) for item in data.test] == [
        *[("backpack", 0)] * 2,
        *[("alarm_clock", 1)] * 2,
    ]


@pytest.mark.parametrize(
    ("name", "spoil", "error", "words"),
    [
        ("ImageNetV2", lambda f: (f / "3").rename(f / "30"), UserError, ["1 folders are not in classnames.txt: 30"]),
        ("ImageNetV2", lambda f: (f / "3").rename(f.parent / "3"), MissingFile, ["1 of 12 classes", "format-val: 3"]),
        (
            "ImageNetV2",
            lambda f: (f.parent / "classnames.txt").unlink(),
            MissingFile,
            ["imagenetv2/classnames.txt", "imagenet/classnames.txt", "drive.google.com"],
        ),
        ("ObjectNet", lambda f: (f / "classes.json").unlink(), MissingFile, ["classes.json", "113", "objectnet.dev"]),
        ("ObjectNet", lambda f: (f / "classes.json").write_text("[]"), UserError, ["classes.json"]),
        (
            "ObjectNet",
            lambda f: (f / "classes.json").write_text('{"sofa": "couch"}'),
            MissingFile,
            ["1 of 1 classes", "sofa"],
        ),
    ],
)
def test_mistakes(tmp_path, name, spoil, error, words):
    spoil({"ImageNetV2": write_v2, "ObjectNet": write_objectnet}[name](tmp_path))
    with pytest.raises(error) as caught:
        build_dataset(config(tmp_path, name))
    for word in (f"{name}: ", *words):
        assert word in str(caught.value)


def test_nothing_is_trained_on_a_test_set(tmp_path):
    write_v2(tmp_path)
    file = tmp_path / "v2.yaml"
    file.write_text(f'_BASE_: "{ROOT}/configs/base/toy.yaml"\nDATASET:\n  NAME: "ImageNetV2"\n')
    words = f"--root {tmp_path} --seed 1 --dataset-config-file {file}".split()
    found = train.main([*words, "--trainer", "ZeroshotCLIP", "--eval-only", "--output-dir", f"{tmp_path}/zero"])
    assert found["total"] == 24 and found["shots"] == -1
    with pytest.raises(UserError, match="ImageNetV2 is only tested on"):
        train.main([*words, "--trainer", "CoOp", "--output-dir", f"{tmp_path}/coop", "OPTIM.MAX_EPOCH", "1"])
    assert not (tmp_path / "coop" / "results.json").exists()
