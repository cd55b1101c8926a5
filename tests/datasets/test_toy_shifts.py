"""ToyObjects in other styles: the same classes, other images, no easier for zero-shot CLIP."""

from hashlib import blake2b

import numpy as np
import pytest
import torch

import datasets
from dassl.clip import build_clip, cosine_logits, text_classifier
from dassl.config import get_cfg_default, merge_yaml
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from datasets.toy.world import WORLD
from tests.conftest import ROOT

datasets.register_all()
from datasets.toy_world import ID, SHIFTS  # noqa: E402  registered once, by register_all

# Of one test image of each class of each shift; taken with Pillow 13.0.0 and NumPy 2.4.6.
DIGEST = "647880d6aca9818a"


def accuracy(clip, toy, split, count=20):
    """Zero-shot accuracy in percent on `count` images a class."""
    names = toy.classnames
    images = np.stack([toy.image(name, split, number) for name in names for number in range(count)])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = clip.preprocess.mean[0], clip.preprocess.std[0]
    with torch.no_grad():
        logits = cosine_logits(
            clip.encode_image((pixels - mean) / std), text_classifier(clip, names, toy.template), 1.0
        )
    return 100 * (logits.argmax(1) == torch.arange(len(names)).repeat_interleave(count)).float().mean().item()


def test_the_shifts_are_the_classes_of_toy_objects_and_no_task_of_the_world():
    assert not set(SHIFTS) & set(WORLD)
    for toy in SHIFTS.values():
        assert toy.classnames == ID.classnames and toy.template == ID.template
        assert not toy.base_to_new and set(toy.styles) != set(ID.styles)


def test_the_images_are_the_benchmarks():
    images = [toy.image(name, "test", 0) for toy in SHIFTS.values() for name in toy.classnames]
    assert len({image.tobytes() for image in images}) == len(images) == 80
    assert blake2b(b"".join(p.tobytes() for p in images), digest_size=8).hexdigest() == DIGEST


def test_zero_shot_is_above_chance_and_below_toy_objects():
    """On the validation images that the strengths were chosen on: chance is 5 %, the floor 1.5 times that."""
    clip = build_clip("tiny")
    ceiling = accuracy(clip, ID, "val")
    found = {name: accuracy(clip, toy, "val") for name, toy in SHIFTS.items()}
    assert all(1.5 * 100 / 20 < value < ceiling for value in found.values()), (ceiling, found)
    expected = {"Sketch": 33.0, "Noise": 36.0, "Dark": 31.0, "Rotation": 35.0}
    assert found == pytest.approx({f"ToyObjects{kind}": value for kind, value in expected.items()}, abs=1.0)


@pytest.mark.parametrize("name", ["ToyObjectsSketch", "ToyObjectsRotation"])
def test_they_are_read_like_any_data_set(tmp_path, name, monkeypatch):
    assert name in DATASET_REGISTRY.registered_names()
    monkeypatch.setattr(DATASET_REGISTRY.get(name), "counts", (2, 1, 3))
    cfg = get_cfg_default()
    merge_yaml(cfg, ROOT / "configs" / "datasets" / f"{SHIFTS[name].folder}.yaml")
    cfg.merge_from_list(["DATASET.ROOT", str(tmp_path), "DATASET.NUM_SHOTS", 1, "SEED", 1])
    data = build_dataset(cfg)
    assert data.classnames == ID.classnames and data.template == ID.template
    assert len(data.test) == 3 * 20 and len(data.train_x) == len(data.val) == 20
    assert (tmp_path / SHIFTS[name].folder / "world.json").is_file()
