"""The data sets with a split file, from tiny folders in their real layouts, and the errors when something is wrong."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

import datasets
from dassl.config import get_cfg_default, merge_yaml
from dassl.data import DataManager
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from dassl.utils import MissingFile, UserError
from tests.fixtures.image_folders import (
    config,
    expect,
    save_split,
    triples,
    write_image,
    write_pets,
    write_split,
)

datasets.register_all()


# registered name: config stem, folder, image folder, zero-shot template
SPLIT_SETS = {
    "Caltech101": ("caltech101", "caltech-101", "101_ObjectCategories", "a photo of a {}."),
    "OxfordPets": ("oxford_pets", "oxford_pets", "images", "a photo of a {}, a type of pet."),
    "StanfordCars": ("stanford_cars", "stanford_cars", "", "a photo of a {}."),
    "OxfordFlowers": ("oxford_flowers", "oxford_flowers", "jpg", "a photo of a {}, a type of flower."),
    "Food101": ("food101", "food-101", "images", "a photo of {}, a type of food."),
    "SUN397": ("sun397", "sun397", "SUN397", "a photo of a {}."),
    "DescribableTextures": ("dtd", "dtd", "images", "a photo of a {}, a type of texture."),
    "EuroSAT": ("eurosat", "eurosat", "2750", "a centered satellite photo of {}."),
    "UCF101": ("ucf101", "ucf101", "UCF-101-midframes", "a photo of a person doing {}."),
}
STEMS = {name: row[0] for name, row in SPLIT_SETS.items()} | {
    "ImageNet": "imagenet",
    "FGVCAircraft": "fgvc_aircraft",
}


def test_importing_the_package_is_cheap():
    """Other programs probe for a package of this name."""
    code = "import sys, datasets; print([m for m in ('torch', 'dassl', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(("name", "stem"), STEMS.items())
def test_every_data_set_has_its_yaml(name, stem):
    cfg = get_cfg_default()
    merge_yaml(cfg, f"configs/datasets/{stem}.yaml")
    assert name == cfg.DATASET.NAME
    assert name in DATASET_REGISTRY.registered_names()


# --- split files


@pytest.mark.parametrize("name", SPLIT_SETS)
def test_split_json_layouts(tmp_path, name):
    _, folder, images, template = SPLIT_SETS[name]
    folder = tmp_path / folder
    split = write_split(folder, images, f"split_zhou_{name}.json", pattern="{name}/sub/{i}.jpg")
    dataset = build_dataset(config(tmp_path, name))
    for part in ("train", "val", "test"):
        items = dataset.train_x if part == "train" else getattr(dataset, part)
        assert triples(items, folder / images) == split[part]
    assert dataset.classnames == ["cat", "dog", "emu"]
    assert dataset.template == template
    assert dataset.has_val
    assert dataset.drawn["train"] == dataset.drawn["val"] == "all"


def test_methods_differ_in_their_template_for_textures(tmp_path):
    write_split(tmp_path / "dtd" / "dtd", "images", "unused.json")
    split = write_split(tmp_path / "dtd", "dtd/images", "split_zhou_DescribableTextures.json")
    dataset = build_dataset(config(tmp_path, "DescribableTextures"))
    assert triples(dataset.test, tmp_path / "dtd" / "dtd" / "images") == split["test"]
    assert dataset.templates == {"coop": "{} texture.", "kgcoop": "a photo of a {}, a type of texture."}


def test_few_shot_draw_is_that_of_the_seed_and_touches_no_global_stream(tmp_path):
    split = write_pets(tmp_path)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    dataset = build_dataset(config(tmp_path, "OxfordPets", DATASET__NUM_SHOTS=5, SEED=3))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    rng = random.Random(3)
    expected = [rng.sample(split["train"][6 * c : 6 * c + 6], 5) for c in range(3)]
    expected_val = [rng.sample(split["val"][5 * c : 5 * c + 5], 4) for c in range(3)]  # never more than 4
    folder = tmp_path / "oxford_pets" / "images"
    assert triples(dataset.train_x, folder) == sum(expected, [])
    assert triples(dataset.val, folder) == sum(expected_val, [])
    assert triples(dataset.test, folder) == split["test"]
    drawn = dataset.drawn
    assert json.loads(json.dumps(drawn)) == drawn
    assert drawn["train"] == [path for part in expected for path, _, _ in part]
    assert drawn["val"] == [path for part in expected_val for path, _, _ in part]
    assert {k: drawn[k] for k in ("format", "dataset", "shots", "seed", "sampler", "split")} == {
        "format": 1,
        "dataset": "OxfordPets",
        "shots": 5,
        "seed": 3,
        "sampler": "coop-1",
        "split": dataset.split_digest,
    }


def test_base_and_new_share_one_draw(tmp_path):
    write_pets(tmp_path)
    sets = {
        subset: build_dataset(config(tmp_path, "OxfordPets", DATASET__NUM_SHOTS=2, DATASET__SUBSAMPLE_CLASSES=subset))
        for subset in ("all", "base", "new")
    }
    assert [sets[s].classnames for s in sets] == [["cat", "dog", "emu"], ["cat", "dog"], ["emu"]]
    assert sets["all"].drawn == sets["base"].drawn == sets["new"].drawn
    for part in ("train_x", "val", "test"):
        paths = {s: [item.impath for item in getattr(dataset, part)] for s, dataset in sets.items()}
        assert paths["all"] == paths["base"] + paths["new"]
    assert {item.label for item in sets["new"].test} == {0}


def test_seed_zero_is_a_seed_and_a_negative_one_is_none(tmp_path):
    write_pets(tmp_path, counts=(40, 1, 1))
    draws = {
        seed: [
            build_dataset(config(tmp_path, "OxfordPets", DATASET__NUM_SHOTS=16, SEED=seed)).drawn["train"] for _ in "ab"
        ]
        for seed in (0, 1, -1)
    }
    assert draws[0][0] == draws[0][1] != draws[1][0] == draws[1][1]
    assert draws[-1][0] != draws[-1][1]


def test_digest_follows_the_content_not_the_bytes(tmp_path):
    split = write_pets(tmp_path)
    folder = tmp_path / "oxford_pets"

    def digest():
        return build_dataset(config(tmp_path, "OxfordPets")).split_digest

    first = digest()
    (folder / "split_zhou_OxfordPets.json").write_text(json.dumps(split, indent=4))
    assert digest() == first
    split["train"][0], split["train"][1] = split["train"][1], split["train"][0]
    save_split(folder, "split_zhou_OxfordPets.json", split)
    assert digest() != first


def test_nothing_is_written_and_old_caches_are_not_opened(tmp_path):
    write_pets(tmp_path)
    folder = tmp_path / "oxford_pets"
    (folder / "split_fewshot").mkdir()
    (folder / "split_fewshot" / "shot_2-seed_1.pkl").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    before = sorted(path for path in tmp_path.rglob("*"))
    DataManager(config(tmp_path, "OxfordPets", DATASET__NUM_SHOTS=2, DATALOADER__TRAIN_X__BATCH_SIZE=2))
    assert sorted(path for path in tmp_path.rglob("*")) == before


# --- what is said when something is wrong


def test_missing_root(tmp_path):
    expect("", UserError, "OxfordPets: no data root given")
    expect(tmp_path / "no", MissingFile, "OxfordPets", tmp_path / "no", "robots.ox.ac.uk", "drive.google.com")


def test_missing_folder_says_what_is_there(tmp_path):
    (tmp_path / "OxfordPets").mkdir()
    (tmp_path / ".toy_shapes.lock").touch()
    words = ("oxford_pets or oxford-iiit-pet", tmp_path, "there: OxfordPets)", "robots.ox.ac.uk")
    expect(tmp_path, MissingFile, *words)
    (tmp_path / "oxford_pets" / "imgs").mkdir(parents=True)
    expect(tmp_path, MissingFile, "no image folder images", "there: imgs")


def test_missing_split_file_says_where_to_get_it(tmp_path):
    write_pets(tmp_path)
    (tmp_path / "oxford_pets" / "split_zhou_OxfordPets.json").unlink()
    expect(tmp_path, MissingFile, "split_zhou_OxfordPets.json", "drive.google.com/file/d/1501r8")
    assert not (tmp_path / "oxford_pets" / "split_zhou_OxfordPets.json").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["not a JSON file"]),
        ("<!DOCTYPE html><title>Sign in", ["is a web page"]),
        ([], ["expected an object with the lists train, val and test"]),
        ({"train": [], "test": []}, ["expected an object with the lists train, val and test"]),
        ({"train": [["a.png", "0", "cat"]], "val": [], "test": []}, ["train[0]", "['a.png', '0', 'cat']"]),
        (
            {"train": [["a.png", True, "cat"]], "val": [], "test": []},
            ["train[0]", "expected [relative path, label"],
        ),
        ({"train": [["a.png", 0]], "val": [], "test": []}, ["train[0]"]),
        ({"train": [["/etc/a.png", 0, "cat"]], "val": [], "test": []}, ["leaves the image folder"]),
        ({"train": [["../a.png", 0, "cat"]], "val": [], "test": []}, ["leaves the image folder"]),
        (
            {"train": [["a.png", 0, "cat"]], "val": [["b.png", 0, "dog"]], "test": []},
            ["val", "b.png", "label 0 is 'cat' in train_x"],
        ),
        ({"train": [["a.png", 1, "cat"]], "val": [], "test": []}, ["label 0 has no training images"]),
        (
            {"train": [["a.png", 0, "cat"]], "val": [], "test": [["b.png", 1, "dog"]]},
            ["b.png", "label 1 has no training images"],
        ),
        (
            {"train": [["a.png", 0, "cat"]], "val": [], "test": [["c.png", 0, "cat"]]},
            ["1 of the 2 images", "c.png"],
        ),
        ({"train": [], "val": [], "test": []}, ["no training images"]),
    ],
)
def test_a_bad_split_file_is_one_clear_error(tmp_path, content, words):
    for name in ("a.png", "b.png"):
        write_image(str(tmp_path / "oxford_pets" / "images" / name))
    path = tmp_path / "oxford_pets" / "split_zhou_OxfordPets.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    expect(tmp_path, UserError, "OxfordPets", *words)


def test_missing_images_are_counted_and_named(tmp_path):
    split = write_pets(tmp_path)
    for path, _, _ in split["test"][:2]:
        (tmp_path / "oxford_pets" / "images" / path).unlink()
    expect(tmp_path, MissingFile, "2 of the 39 images", "split_zhou_OxfordPets.json", split["test"][0][0])


def test_a_class_with_fewer_images_than_shots(tmp_path):
    write_pets(tmp_path)
    words = ("OxfordPets: 16 shots", "cat (6), dog (6), emu (6)", "At most 6", "DATASET.NUM_SHOTS")
    expect(tmp_path, UserError, *words, DATASET__NUM_SHOTS=16)


def test_unknown_subset(tmp_path):
    write_pets(tmp_path)
    expect(tmp_path, UserError, "all, base, new", "'novel'", DATASET__SUBSAMPLE_CLASSES="novel")


def test_few_validation_images_are_all_taken(tmp_path):
    write_pets(tmp_path, counts=(6, 2, 1))
    assert len(build_dataset(config(tmp_path, "OxfordPets", DATASET__NUM_SHOTS=4)).val) == 6


def test_a_set_without_validation_images_has_none(tmp_path):
    write_pets(tmp_path, counts=(6, 0, 1))
    dataset = build_dataset(config(tmp_path, "OxfordPets", DATASET__NUM_SHOTS=1))
    assert (dataset.val, dataset.has_val, dataset.drawn["val"]) == (None, False, "none")
