"""Transform pipelines: order, every name, errors, and the text that describes them."""

import random

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from dassl.data.transforms import (
    INTERPOLATION_MODES,
    TRANSFORMS,
    build_transform,
    describe_transform,
    draws_from_torch_only,
)
from dassl.data.transforms.augment import Cutout, GaussianNoise, InstanceNormalization, Random2DTranslation
from dassl.utils import UserError
from tests.fixtures.image_folders import config


def picture(width=20, height=14):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def step_names(transform):
    return [type(step).__name__ for step in transform.transforms]


def test_clip_training_pipeline():
    cfg = config("", "", INPUT__SIZE=(224, 224), INPUT__INTERPOLATION="bicubic")
    steps = build_transform(cfg).transforms
    assert step_names(build_transform(cfg)) == [
        "RandomResizedCrop",
        "RandomHorizontalFlip",
        "ToTensor",
        "Normalize",
    ]
    assert steps[0].size == (224, 224)
    assert tuple(steps[0].scale) == (0.08, 1.0)
    assert steps[0].interpolation == INTERPOLATION_MODES["bicubic"]
    assert build_transform(cfg)(picture()).shape == (3, 224, 224)


def test_test_pipeline_resizes_the_shorter_edge_and_crops():
    cfg = config("", "", INPUT__SIZE=(8, 10), INPUT__TRANSFORMS=("random_flip", "normalize", "cutout"))
    transform = build_transform(cfg, is_train=False)
    assert step_names(transform) == ["Resize", "CenterCrop", "ToTensor", "Normalize"]
    assert transform.transforms[0].size == 10
    assert transform(picture()).shape == (3, 8, 10)


def test_squash_resizes_both_sides_and_crops_nothing():
    cfg = config("", "", INPUT__SIZE=(8, 10), INPUT__TRANSFORMS=("normalize",), INPUT__RESIZE="squash")
    transform = build_transform(cfg, is_train=False)
    assert step_names(transform) == ["Resize", "ToTensor", "Normalize"]
    assert transform.transforms[0].size == (8, 10)
    with pytest.raises(UserError, match="INPUT.RESIZE"):
        build_transform(config("", "", INPUT__RESIZE="stretch"), is_train=False)


def test_order_of_names_has_no_effect():
    names = ["instance_norm", "gaussian_noise", "normalize", "cutout", "randomgrayscale", "random_flip"]
    expected = ["Resize", "RandomHorizontalFlip", "RandomGrayscale", "ToTensor", "Cutout", "Normalize"]
    for choices in (names, names[::-1]):
        built = step_names(build_transform(config("", ""), choices=choices))
        assert built == [*expected, "GaussianNoise", "InstanceNormalization"]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_name_gives_a_picture_of_the_right_size(name):
    cfg = config("", "", INPUT__SIZE=(32, 24), INPUT__GB_K=3, INPUT__GB_P=1.0)
    transform = build_transform(cfg, choices=[name])
    for seed in range(5):
        torch.manual_seed(seed)
        random.seed(seed)
        image = transform(picture(40, 50))
        assert image.shape == (3, 32, 24)
        assert image.dtype == torch.float32
        assert image.isfinite().all()


@pytest.mark.parametrize("name", ["random_resize_crop", "Normalize"])
def test_unknown_name_is_refused_with_the_nearest(name):
    with pytest.raises(UserError, match="do you mean .(random_resized_crop|normalize)"):
        build_transform(config("", "", INPUT__TRANSFORMS=(name,)))


def test_unknown_interpolation_is_refused():
    with pytest.raises(UserError, match="bicubic"):
        build_transform(config("", "", INPUT__INTERPOLATION="cubic"))


def test_no_transform():
    assert build_transform(config("", "", INPUT__NO_TRANSFORM=True)) is None


def test_cutout_zeroes_one_square_and_leaves_its_input():
    image = torch.ones(3, 32, 32)
    np.random.seed(0)
    cut = Cutout(n_holes=1, length=6)(image)
    assert image.min() == 1
    rows, columns = torch.nonzero(cut[0] == 0, as_tuple=True)
    assert rows.max() - rows.min() < 6
    assert 9 <= len(rows) <= 36
    assert len(rows) == len(columns.unique()) * len(rows.unique())


def test_instance_norm_gives_zero_mean_and_unit_deviation():
    image = InstanceNormalization()(torch.rand(3, 9, 7) * 5 + 2).flatten(1)
    assert torch.allclose(image.mean(1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(image.std(1), torch.ones(3), atol=1e-5)


def test_gaussian_noise_has_its_mean_and_deviation():
    noise = GaussianNoise(mean=1.0, std=0.5, p=1.0)(torch.zeros(3, 64, 64))
    assert abs(noise.mean() - 1.0) < 0.05
    assert abs(noise.std() - 0.5) < 0.05
    assert GaussianNoise(p=0.0)(torch.zeros(3, 2, 2)).abs().sum() == 0


def test_translation_without_luck_is_a_plain_resize():
    shifted = Random2DTranslation(16, 12, p=0.0)(picture(40, 40))
    assert shifted.tobytes() == picture(40, 40).resize((12, 16), Image.BILINEAR).tobytes()


class Unprintable:
    def __init__(self, strength):
        self.strength = strength


def test_description_is_equal_for_equal_transforms_only():
    cfg = config("", "")
    every = build_transform(cfg, choices=TRANSFORMS)
    assert describe_transform(every) == describe_transform(build_transform(cfg, choices=TRANSFORMS))
    assert "0x" not in describe_transform(every)
    other = config("", "", INPUT__RRCROP_SCALE=(0.5, 1.0))
    assert describe_transform(build_transform(cfg)) != describe_transform(build_transform(other))


def test_description_of_objects_without_a_text_of_their_own():
    texts = [describe_transform(T.Compose([Unprintable(s), len, picture])) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert "0x" not in texts[0]
    assert "strength=1" in texts[0]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_steps_said_to_draw_from_torch_only_leave_the_other_streams_alone(name):
    transform = build_transform(config("", "", INPUT__SIZE=(32, 24), INPUT__GB_K=3), choices=[name])
    states = random.getstate(), np.random.get_state()[2]
    for _ in range(3):
        transform(picture(40, 50))
    kept = (random.getstate(), np.random.get_state()[2]) == states
    assert kept or not draws_from_torch_only(transform)


@pytest.mark.parametrize("step", [T.Lambda(len), T.RandomChoice([]), T.RandomApply([Unprintable(1)]), len])
def test_unknown_steps_are_not_said_to_draw_from_torch_only(step):
    assert not draws_from_torch_only(step)
    assert not draws_from_torch_only(T.Compose([T.ToTensor(), step]))
