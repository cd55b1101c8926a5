"""The toy data sets as tasks of a stream: the same images, in other lists."""

import collections

import pytest

import datasets
from dassl.config import get_cfg_default, merge_yaml
from dassl.data.datasets import DATASET_REGISTRY, Datum, build_dataset
from datasets.toy.world import WORLD, world_digest
from tests.conftest import ROOT
from tests.fixtures.image_folders import config

datasets.register_all()
from datasets.toy_world import TASKS, TEST_IMAGES, first_of_each  # noqa: E402  registered once, by register_all

SMALL = (3, 2, 4)  # images a class


@pytest.fixture
def small(monkeypatch):
    """A few images a class; both readers of a folder agree on how many, as the folder's stamp has it."""
    for name in (*TASKS, *(f"Mtil{task}" for task in TASKS)):
        monkeypatch.setattr(DATASET_REGISTRY.get(name), "counts", SMALL)


def test_there_are_eight_tasks_and_each_has_its_yaml():
    assert len(TASKS) == 8 and list(TASKS) == sorted(TASKS)
    for task in TASKS:
        cfg = get_cfg_default()
        final = merge_yaml(cfg, ROOT / "configs" / "datasets" / "mtil" / f"{WORLD[task].folder}.yaml")
        assert f"Mtil{task}" == cfg.DATASET.NAME and final["MODEL"]["BACKBONE"]["NAME"] == "tiny"
        assert DATASET_REGISTRY.get(cfg.DATASET.NAME).counts == DATASET_REGISTRY.get(task).counts


def test_a_task_is_its_toy_set_in_other_lists(tmp_path, small):
    toy = build_dataset(config(tmp_path, "ToyCounts"))
    stamp = tmp_path / "toy_counts" / "world.json"
    written = stamp.stat().st_mtime_ns
    task = build_dataset(config(tmp_path, "MtilToyCounts"))
    assert stamp.stat().st_mtime_ns == written  # nothing is drawn twice
    paths = [[item.impath for item in part] for part in (task.train_x, toy.train_x + toy.val, task.test, toy.test)]
    assert paths[0] == paths[1] and paths[2] == paths[3]
    assert task.classnames == toy.classnames == WORLD["ToyCounts"].classnames
    assert (task.task, task.prompts, task.template) == ("ToyCounts", ["a photo of {}."], "a photo of {}.")
    assert task.val is None and not task.has_val and task.drawn["val"] == "none"
    assert task.metadata() == {
        "world_digest": world_digest(),
        "task": "ToyCounts",
        "prompts": ["a photo of {}."],
    }


def test_shots_are_drawn_from_all_training_images(tmp_path, small):
    task = build_dataset(config(tmp_path, "MtilToyDigits", DATASET__NUM_SHOTS=5, SEED=2))
    again = build_dataset(config(tmp_path, "MtilToyDigits", DATASET__NUM_SHOTS=5, SEED=2))
    assert collections.Counter(item.label for item in task.train_x) == dict.fromkeys(range(10), 5)
    assert task.drawn == again.drawn and task.drawn["sampler"] == "coop-1"
    assert len({item.impath for item in task.train_x}) == 50
    assert len(task.test) == 40


@pytest.mark.parametrize("classes", [1, 7, 16, 26])
def test_the_test_images_are_even_over_the_classes(classes):
    items = [Datum.listed(f"{i}.png", label=i % classes) for i in range(50 * classes)]
    chosen = first_of_each(items, TEST_IMAGES)
    counts = collections.Counter(item.label for item in chosen)
    assert len(chosen) == min(TEST_IMAGES, 50 * classes)
    assert set(counts) == set(range(classes)) and max(counts.values()) - min(counts.values()) <= 1
    assert [counts[label] for label in range(classes)] == sorted(counts.values(), reverse=True)
    numbers = [int(item.impath[:-4]) for item in chosen]
    assert numbers == sorted(numbers) == list(range(len(numbers)))
