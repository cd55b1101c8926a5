"""A split of one's own, in each layout that has one, and what results say of it."""

import collections
import json
import os

import pytest

import datasets
from dassl.data.datasets import build_dataset
from dassl.utils import MissingFile, UserError
from datasets.tools.command import main
from datasets.tools.make_split import READERS
from tests.fixtures.image_folders import config, write_pets
from tests.fixtures.mtil_folders import (
    PLACES,
    WRITERS,
    write_caltech101,
    write_dtd,
    write_eurosat,
    write_food,
    write_images,
    write_oxford_pet,
    write_stanford_cars,
)

datasets.register_all()


def write_ucf101(root):
    folder = root / "ucf101"
    (folder / "ucfTrainTestlist").mkdir(parents=True)
    actions = ["Hammering", "HammerThrow"]  # not in the order of their folders
    lists = folder / "ucfTrainTestlist"
    (lists / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(actions, start=1)))
    for part, groups in (("train", range(8, 18)), ("test", range(1, 5))):
        lines = []
        for number, action in enumerate(actions, start=1):
            place = "Hammer_Throw" if action == "HammerThrow" else action
            videos = [f"v_{action}_g{group:02d}_c01" for group in groups]
            write_images(folder / "UCF-101-midframes" / place, [f"{video}.jpg" for video in videos])
            lines += [f"{action}/{video}.avi" + (f" {number}" if part == "train" else "") for video in videos]
        (lists / f"{part}list01.txt").write_text("\n".join(lines) + "\n")


def write_sun397(root):
    folder = root / "sun397"
    (folder / "SUN397").mkdir(parents=True)
    (folder / "ClassName.txt").write_text("\n".join(PLACES) + "\n")
    for part, numbers in (("Training", range(10)), ("Testing", range(10, 14))):
        files = [f"{place}/sun_{i:03d}.jpg" for place in PLACES for i in numbers]
        write_images(folder / "SUN397", [file[1:] for file in files])
        (folder / f"{part}_01.txt").write_text("\n".join(files) + "\n")


def write_named_flowers(root):
    from scipy.io import savemat

    folder = root / "oxford_flowers"
    write_images(folder / "jpg", [f"image_{i:05d}.jpg" for i in range(1, 31)])
    savemat(folder / "imagelabels.mat", {"labels": [3 - i % 3 for i in range(30)]})  # 3, 2, 1, 3, ...
    (folder / "cat_to_name.json").write_text(json.dumps({"1": "pink primrose", "2": "moon orchid", "3": "sweet pea"}))


# data set: its writer, class names, images of train, val and test
CASES = {
    "Caltech101": (write_caltech101, ["face", "accordion", "crocodile_head", "yin_yang"], (22, 8, 13)),
    "DescribableTextures": (write_dtd, ["banded", "blotchy", "zigzagged"], (12, 6, 6)),
    "EuroSAT": (write_eurosat, ["Annual Crop Land", "Herbaceous Vegetation Land", "Sea or Lake"], (18, 6, 12)),
    "Food101": (write_food, ["apple_pie", "churros"], (6, 2, 4)),
    "OxfordFlowers": (write_named_flowers, ["pink primrose", "moon orchid", "sweet pea"], (15, 6, 9)),
    "OxfordPets": (write_oxford_pet, ["abyssinian", "american_bulldog", "yorkshire_terrier"], (6, 3, 9)),
    "StanfordCars": (
        write_stanford_cars,
        ["2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 Ram C/V Cargo Van Minivan"],
        (6, 3, 9),
    ),
    "SUN397": (write_sun397, ["abbey", "outdoor apartment_building", "indoor_procenium theater"], (24, 6, 12)),
    "UCF101": (write_ucf101, ["Hammering", "Hammer_Throw"], (16, 4, 8)),
}


def make(root, name, *words):
    return main(["make-split", name, "--root", str(root), *words])


def test_every_set_with_a_split_file_can_be_split():
    assert set(CASES) == set(READERS)


@pytest.mark.parametrize("name", CASES)
def test_a_split_is_made_and_read(tmp_path, name):
    write, names, counts = CASES[name]
    write(tmp_path)
    with pytest.raises(MissingFile, match=f"python -m datasets make-split {name}"):
        build_dataset(config(tmp_path, name))
    assert make(tmp_path, name) == 0
    data = build_dataset(config(tmp_path, name))
    lists = (data.train_x, data.val, data.test)
    assert tuple(map(len, lists)) == counts and data.classnames == names
    assert len({item.impath for items in lists for item in items}) == sum(counts)
    for items in lists:  # as many of each class as the classes have
        assert len(set(collections.Counter(item.label for item in items).values())) == 1 or name == "Caltech101"
    assert data.split_used == f"split_local_{name}.json" and data.metadata() == {"split_file": data.split_used}


def test_official_test_lists_stay_as_they_are(tmp_path):
    write_oxford_pet(tmp_path)
    make(tmp_path, "oxford_pets")
    data, task = (build_dataset(config(tmp_path, name)) for name in ("OxfordPets", "MtilOxfordPet"))
    assert [item.impath for item in data.test] == [item.impath for item in task.test]
    assert {i.impath for i in data.train_x + data.val} == {i.impath for i in task.train_x}


def test_the_seed_decides_and_nothing_else(tmp_path):
    for place, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        WRITERS["EuroSAT"](tmp_path / place)
        make(tmp_path / place, "EuroSAT", "--seed", seed)
    texts = [(tmp_path / p / "eurosat" / "split_local_EuroSAT.json").read_text() for p in "abc"]
    assert texts[0] == texts[1] != texts[2]


def test_a_published_split_wins_and_none_is_made_beside_it(tmp_path):
    write_pets(tmp_path)
    with pytest.raises(UserError, match="split_zhou_OxfordPets.json is there already"):
        make(tmp_path, "OxfordPets")
    folder = tmp_path / "oxford_pets"
    (folder / "split_local_OxfordPets.json").write_text("{}")
    assert build_dataset(config(tmp_path, "OxfordPets")).metadata() == {}
    os.remove(folder / "split_zhou_OxfordPets.json")
    with pytest.raises(UserError, match="split_local_OxfordPets.json is there already"):
        make(tmp_path, "OxfordPets")
    with pytest.raises(UserError, match="FGVCAircraft has no split file to make"):
        make(tmp_path, "fgvc_aircraft")


def test_check_says_that_a_split_is_local(tmp_path, capsys):
    write_dtd(tmp_path)
    make(tmp_path, "dtd")
    assert main(["check", "dtd", "--root", str(tmp_path)]) == 1
    assert "split_local_DescribableTextures.json is a split made here" in capsys.readouterr().out
