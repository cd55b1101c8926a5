"""MTIL's eleven tasks, from tiny folders in their real layouts; torchvision's own readers are the oracle."""

import hashlib
import os
import pickle

import numpy as np
import pytest
import torch
from torchvision import datasets as torchvision

import datasets
import train
from dassl.config import get_cfg_default, merge_yaml
from dassl.data import DataManager
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from datasets.mtil import seeded_split
from tests.conftest import ROOT
from tests.fixtures.image_folders import config
from tests.fixtures.mtil_folders import WRITERS

datasets.register_all()

# stem of the yaml, number of prompts, the first prompt
TASKS = {
    "Aircraft": ("aircraft", 2, "a photo of a {}, a type of aircraft."),
    "Caltech101": ("caltech101", 34, "a photo of a {}."),
    "CIFAR100": ("cifar100", 18, "a photo of a {}."),
    "DTD": ("dtd", 8, "a photo of a {} texture."),
    "EuroSAT": ("eurosat", 3, "a centered satellite photo of {}."),
    "Flowers": ("flowers", 1, "a photo of a {}, a type of flower."),
    "Food": ("food", 1, "a photo of a {}, a type of food."),
    "MNIST": ("mnist", 1, 'a photo of the number: "{}".'),
    "OxfordPet": ("oxford_pet", 1, "a photo of a {}, a type of pet."),
    "StanfordCars": ("stanford_cars", 9, "a photo of a {}, a type of car."),
    "SUN397": ("sun397", 2, "a photo of a {}."),
}
# Published: number of images, the first five of the training part, SHA-256 of all of it
PUBLISHED_SPLITS = {
    "Caltech101": (8677, [8512, 5748, 7753, 4345, 5587], "5e529869d8bb5ab9"),
    "EuroSAT": (27000, [4542, 1781, 1366, 19963, 16858], "4f8963d2e6693ace"),
    "SUN397": (108754, [57128, 82947, 84286, 54173, 36280], "47f2391abd083861"),
}


def built(root, task, **keys):
    return build_dataset(config(root, f"Mtil{task}", **keys))


def pairs(items):
    return [(item.impath, item.label) for item in items]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_yaml_its_prompts_and_no_validation_images(tmp_path, task):
    stem, count, first = TASKS[task]
    cfg = get_cfg_default()
    merge_yaml(cfg, ROOT / "configs" / "datasets" / "mtil" / f"{stem}.yaml")
    assert f"Mtil{task}" == cfg.DATASET.NAME
    WRITERS[task](tmp_path)
    before = sorted(tmp_path.rglob("*"))
    data = built(tmp_path, task)
    assert data.task == task and data.template == data.prompts[0] == first
    assert len(data.prompts) == len(set(data.prompts)) == count and all("{}" in prompt for prompt in data.prompts)
    assert data.val is None and not data.has_val
    assert data.metadata() == {"task": task, "prompts": data.prompts}
    assert not set(pairs(data.train_x)) & set(pairs(data.test))
    assert {item.label for item in data.train_x} == set(range(data.num_classes)) == set(range(len(data.classnames)))
    assert sorted(tmp_path.rglob("*")) == before


# --- the same images and labels as torchvision


def oracle(name, root, part):
    """torchvision's data set of a task: (path, label) in its order."""
    trained = part == "train"
    if name == "Aircraft":
        found = torchvision.FGVCAircraft(root, split=part)
        return list(zip(found._image_files, found._labels, strict=True)), found.classes
    if name == "DTD":
        found = torchvision.DTD(root, split=part)
        return [(str(p), k) for p, k in zip(found._image_files, found._labels, strict=True)], found.classes
    if name == "Food":
        found = torchvision.Food101(root, split=part)
        return [(str(p), k) for p, k in zip(found._image_files, found._labels, strict=True)], found.classes
    if name == "OxfordPet":
        found = torchvision.OxfordIIITPet(root, split="trainval" if trained else "test")
        return [(str(p), k) for p, k in zip(found._images, found._labels, strict=True)], found.classes
    found = torchvision.StanfordCars(root, split=part)
    return found._samples, found.classes


@pytest.mark.parametrize("task", ["Aircraft", "DTD", "Food", "OxfordPet", "StanfordCars"])
def test_official_lists_are_read_as_torchvision_reads_them(tmp_path, task):
    WRITERS[task](tmp_path)
    data = built(tmp_path, task)
    for part, items in (("train", data.train_x), ("test", data.test)):
        expected, classes = oracle(task, str(tmp_path), part)
        assert pairs(items) == expected
    assert data.classnames == [name.replace("_", " ") for name in classes]


def torch_split(items):
    """The published code: random_split of all items with a generator seeded 42."""
    cut = int(0.8 * len(items))
    halves = torch.utils.data.random_split(items, [cut, len(items) - cut], generator=torch.Generator().manual_seed(42))
    return [[items[i] for i in half.indices] for half in halves]


def test_caltech_is_split_as_published(tmp_path):
    folder = WRITERS["Caltech101"](tmp_path)
    found = torchvision.Caltech101(str(tmp_path))
    every = [
        (f"{folder}/{found.categories[k]}/image_{i:04d}.jpg", k) for i, k in zip(found.index, found.y, strict=True)
    ]
    data = built(tmp_path, "Caltech101")
    assert [pairs(data.train_x), pairs(data.test)] == torch_split(every)
    assert data.classnames == ["off-center face", "accordion", "head of a crocodile", "yin and yang symbol"]


def test_eurosat_is_split_as_published(tmp_path):
    WRITERS["EuroSAT"](tmp_path)
    found = torchvision.EuroSAT(str(tmp_path))
    data = built(tmp_path, "EuroSAT")
    assert [pairs(data.train_x), pairs(data.test)] == torch_split(found.samples)
    assert data.classnames == ["annual crop land", "brushland or shrubland", "lake or sea"]


def test_sun397_is_split_by_sorted_paths(tmp_path):
    WRITERS["SUN397"](tmp_path)
    found = torchvision.SUN397(str(tmp_path))
    every = sorted(zip(map(str, found._image_files), found._labels, strict=True))
    data = built(tmp_path, "SUN397")
    assert [pairs(data.train_x), pairs(data.test)] == torch_split(every)
    assert data.classnames == [name.replace("_", " ") for name in found.classes]
    assert data.classnames[1] == "apartment building/outdoor"


def test_flowers_have_the_names_of_the_prompt_list(tmp_path):
    folder = WRITERS["Flowers"](tmp_path)
    data = built(tmp_path, "Flowers")
    labels = [3, 1, 2, 1, 2, 3, 1, 2, 3]  # of images 1, 2, ... in imagelabels.mat, from 1
    for items, numbers in ((data.train_x, [2, 3, 1]), (data.test, [7, 8, 9])):
        assert pairs(items) == [(f"{folder}/jpg/image_{i:05d}.jpg", labels[i - 1] - 1) for i in numbers]
    assert data.classnames == ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"]
    from datasets.mtil_words import FLOWER_NAMES

    known = torchvision.Flowers102.classes
    assert [pair for pair in zip(FLOWER_NAMES, known, strict=True) if len(set(pair)) > 1] == [
        ("pink-yellow dahlia", "pink-yellow dahlia?")  # a misprint there
    ]


@pytest.mark.parametrize("task", PUBLISHED_SPLITS)
def test_published_indices_of_the_random_splits(task):
    count, first, digest = PUBLISHED_SPLITS[task]
    train, _, test = seeded_split(range(count))
    assert sorted(train + test) == list(range(count)) and train[:5] == first
    assert hashlib.sha256(",".join(map(str, train)).encode()).hexdigest()[:16] == digest


# --- arrays


def test_mnist_images_are_torchvisions(tmp_path):
    WRITERS["MNIST"](tmp_path)
    data = built(tmp_path, "MNIST")
    for part, items in ((True, data.train_x), (False, data.test)):
        found = torchvision.MNIST(str(tmp_path), train=part)
        assert [item.label for item in items] == [label for _, label in found]
        for item, (image, _) in zip(items, found, strict=True):
            assert np.array_equal(np.asarray(item.load_image()), np.asarray(image.convert("RGB")))
    assert data.classnames == ["0 - zero", "1 - one", "2 - two"]


def test_cifar_images_and_names(tmp_path):
    folder = WRITERS["CIFAR100"](tmp_path)
    data = built(tmp_path, "CIFAR100")
    pixels = np.random.default_rng(1).integers(0, 256, (6, 3072), dtype=np.uint8)  # as the fixture draws the test part
    for row, item in zip(pixels, data.test, strict=True):
        assert np.array_equal(np.asarray(item.load_image()), row.reshape(3, 32, 32).transpose(1, 2, 0))
        assert item.file == str(folder / "test") and os.path.isfile(item.file)
    assert data.classnames == ["apple", "aquarium fish"]
    assert len({item.impath for item in data.train_x + data.test}) == 18


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_of_today_are_read_too(tmp_path, protocol):
    folder = WRITERS["CIFAR100"](tmp_path)
    pixels = np.zeros((4, 3072), dtype=np.uint8)
    (folder / "test").write_bytes(pickle.dumps({"fine_labels": [0, 1, 0, 1], "data": pixels}, protocol=protocol))
    assert len(built(tmp_path, "CIFAR100").test) == 4


@pytest.mark.parametrize("task", ["CIFAR100", "MNIST", "OxfordPet"])
def test_batches_come_out_of_the_loaders(tmp_path, task):
    """Through worker processes as well: images of arrays travel like files."""
    WRITERS[task](tmp_path)
    keys = {"DATALOADER__TRAIN_X__BATCH_SIZE": 4, "DATALOADER__TEST__BATCH_SIZE": 4, "DATALOADER__NUM_WORKERS": 1}
    manager = DataManager(config(tmp_path, f"Mtil{task}", **keys))
    batches = list(manager.test_loader)
    assert sum(len(batch["label"]) for batch in batches) == len(manager.dataset.test)
    assert batches[0]["img"].shape == (4, 3, 8, 8)
    assert next(iter(manager.train_loader_x))["img"].shape == (4, 3, 8, 8)
    assert manager.val_loader is None


def test_a_run_on_images_of_arrays(tmp_path):
    """The feature bank, which names images by their files, says what the pixels say."""
    WRITERS["MNIST"](tmp_path)
    config_file = tmp_path / "mnist.yaml"
    config_file.write_text(f'_BASE_: "{ROOT}/configs/base/toy.yaml"\nDATASET:\n  NAME: "MtilMNIST"\n')
    words = f"--root {tmp_path} --seed 1 --trainer ZeroshotCLIP --eval-only --dataset-config-file {config_file}"
    found = []
    for bank in (True, False):
        own = f"--output-dir {tmp_path}/{bank} FEATURES.DIR {tmp_path}/bank FEATURES.TEST {bank}"
        found.append(train.main([*words.split(), *own.split()]))
    assert found[0]["metrics"] == found[1]["metrics"] and found[0]["total"] == 6
    assert (found[0]["dataset"], found[0]["task"]) == ("MtilMNIST", "MNIST")
    assert found[0]["prompts"] == ['a photo of the number: "{}".']
    assert len(list((tmp_path / "bank").iterdir())) == 1


def test_shots_are_the_projects_draw(tmp_path):
    WRITERS["MNIST"](tmp_path)
    data, again = (built(tmp_path, "MNIST", DATASET__NUM_SHOTS=2, SEED=seed) for seed in (1, 1))
    assert [item.label for item in data.train_x] == [0, 0, 1, 1, 2, 2] and len(data.test) == 6
    assert data.drawn == again.drawn and data.drawn["val"] == "none"
    assert data.drawn["train"][0].startswith("train-images-idx3-ubyte/")


# --- other folders that people have


def test_other_folder_names_are_found(tmp_path):
    moves = {
        "DTD": ("dtd/dtd", "dtd"),
        "Aircraft": ("fgvc-aircraft-2013b/data", "fgvc-aircraft-2013b"),
        "Flowers": ("flowers-102", "oxford_flowers"),
        "OxfordPet": ("oxford-iiit-pet", "oxford_pets"),
        "Caltech101": ("caltech101", "caltech-101"),
    }
    for task, (usual, other) in moves.items():
        WRITERS[task](tmp_path / "as_it_is")
        WRITERS[task](tmp_path / "moved")
        source = tmp_path / "moved" / usual
        source.rename(tmp_path / "moved" / "kept")
        if other == os.path.dirname(usual):
            source.parent.rmdir()
        (tmp_path / "moved" / "kept").rename(tmp_path / "moved" / other)
        first, second = (built(tmp_path / place, task) for place in ("as_it_is", "moved"))
        assert second.dataset_dir == str(tmp_path / "moved" / other)
        assert first.split_digest == second.split_digest


def test_cars_of_the_mirror_with_folders_in_folders(tmp_path):
    folder = WRITERS["StanfordCars"](tmp_path)
    labels = [item.label for item in built(tmp_path, "StanfordCars").test]
    for part in ("cars_train", "cars_test"):
        (folder / part).rename(folder / "kept")
        (folder / part).mkdir()
        (folder / "kept").rename(folder / part / part)
    (folder / "cars_test_annos_withlabels.mat").rename(folder / "devkit" / "cars_test_annos_withlabels.mat")
    data = built(tmp_path, "StanfordCars")
    assert [item.label for item in data.test] == labels
    assert all(os.path.isfile(item.impath) and "cars_test/cars_test" in item.impath for item in data.test)


def test_sun397_in_coops_folder(tmp_path):
    WRITERS["SUN397"](tmp_path)
    digest = built(tmp_path, "SUN397").split_digest
    (tmp_path / "SUN397").rename(tmp_path / "kept")
    (tmp_path / "sun397").mkdir()
    (tmp_path / "kept").rename(tmp_path / "sun397" / "SUN397")
    assert built(tmp_path, "SUN397").split_digest == digest


def test_packed_mnist_is_read_as_it_is(tmp_path):
    import gzip

    folder = WRITERS["MNIST"](tmp_path)
    first = [np.asarray(item.load_image()).tolist() for item in built(tmp_path, "MNIST").test]
    for path in list(folder.iterdir()):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert [np.asarray(item.load_image()).tolist() for item in built(tmp_path, "MNIST").test] == first


def test_the_names_of_tasks_are_those_of_the_stream():
    tasks = [name for name in DATASET_REGISTRY.registered_names() if name.startswith("Mtil")]
    assert {DATASET_REGISTRY.get(name).task for name in tasks} == {name.removeprefix("Mtil") for name in tasks}
    assert set(TASKS) <= {name.removeprefix("Mtil") for name in tasks}
