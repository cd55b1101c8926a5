"""Transform pipelines: order, every name, errors, and the text that describes them."""

import pickle
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
from dassl.data.transforms.randaugment import FILL, OPERATIONS, RandAugment, RandAugment2, RandAugmentFixMatch
from dassl.data.transforms.transforms import Cutout, GaussianNoise, InstanceNormalization, Random2DTranslation
from dassl.utils import UserError
from tests.fixtures.image_folders import config


def sample_image(width=20, height=14):
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
    assert build_transform(cfg)(sample_image()).shape == (3, 224, 224)


def test_test_pipeline_resizes_the_shorter_edge_and_crops():
    cfg = config("", "", INPUT__SIZE=(8, 10), INPUT__TRANSFORMS=("random_flip", "normalize", "cutout"))
    transform = build_transform(cfg, is_train=False)
    assert step_names(transform) == ["Resize", "CenterCrop", "ToTensor", "Normalize"]
    assert transform.transforms[0].size == 10
    assert transform(sample_image()).shape == (3, 8, 10)


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
def test_every_name_gives_an_image_of_the_right_size(name):
    cfg = config("", "", INPUT__SIZE=(32, 24), INPUT__GB_K=3, INPUT__GB_P=1.0)
    transform = build_transform(cfg, choices=[name])
    for seed in range(5):
        torch.manual_seed(seed)
        random.seed(seed)
        image = transform(sample_image(40, 50))
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
    shifted = Random2DTranslation(16, 12, p=0.0)(sample_image(40, 40))
    assert shifted.tobytes() == sample_image(40, 40).resize((12, 16), Image.BILINEAR).tobytes()


# RandAugment


def gradient(side=64):
    """Red grows to the right, green downwards, blue along the diagonal."""
    right = np.tile(np.linspace(0, 255, side), (side, 1))
    return np.stack([right, right.T, (right + right.T) / 2], -1).astype(np.uint8)


@pytest.mark.parametrize(("policy", "change", "inverted"), [(RandAugment, 0.223, 0.059), (RandAugment2, 0.108, 0.058)])
def test_policies_change_an_image_as_much_as_dassls(policy, change, inverted, draws=1500):
    """Within four standard errors of that many draws; torchvision's change it by 0.112 and invert nothing."""
    random.seed(1)
    np.random.seed(1)
    before, augment = gradient(), policy()
    after = [np.asarray(augment(Image.fromarray(before))).astype(float) for _ in range(draws)]
    changes = np.array([np.abs(image - before).mean() / 255 for image in after])
    assert abs(changes.mean() - change) < 4 * changes.std() / draws**0.5
    with np.errstate(invalid="ignore"):  # an image of one colour has no correlation
        turned = sum(np.corrcoef(image.ravel(), before.ravel())[0, 1] < -0.95 for image in after)
    assert abs(turned / draws - inverted) < 4 * (inverted * (1 - inverted) / draws) ** 0.5


def test_policies_have_dassls_operations_values_and_draws():
    """Lists and ranges: 16 at a third of the range, 15 of which 60 % act, 14; by Python's generator alone."""
    sizes = [len(policy.operations) for policy in (RandAugment, RandAugment2, RandAugmentFixMatch)]
    assert sizes == [16, 15, 14]
    values = {name: low + RandAugment().magnitude() * (high - low) for name, low, high in RandAugment.operations}
    assert values["Rotate"] == pytest.approx(10) and values["Color"] == pytest.approx(0.7)
    assert values["Cutout"] == pytest.approx(40 / 3) and values["Solarize"] == pytest.approx(256 / 3)
    random.seed(3)
    shares = [RandAugment2().magnitude() for _ in range(2000)]
    acting = [share for share in shares if share is not None]
    assert abs(len(acting) / 2000 - 0.6) < 4 * (0.6 * 0.4 / 2000) ** 0.5
    assert abs(np.mean(acting) - 0.5) < 4 * (len(acting) * 12) ** -0.5
    signed = {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}
    for seed in range(20):  # n of the list at once, then for each: whether, where in the range, and the sign
        random.seed(seed)
        for name, *_ in random.choices(RandAugment2.operations, k=2):
            if random.random() <= 0.6:
                random.random()
                _ = random.random() if name in signed else None
        after = random.getstate()
        random.seed(seed)
        RandAugment2()(sample_image())
        assert random.getstate() == after


def plain(name, pixels, v):
    """What an operation without a draw makes of one channel's value, in 0..255."""
    if name == "SolarizeAdd":
        pixels = min(255, int(pixels + v))
        return 255 - pixels if pixels >= 128 else pixels
    if name == "Solarize":
        return 255 - pixels if pixels >= v else pixels
    return {"Invert": 255 - pixels, "Identity": pixels, "Posterize": pixels >> (8 - int(v)) << (8 - int(v))}[name]


@pytest.mark.parametrize(
    ("name", "v"), [("SolarizeAdd", 110 / 3), ("Solarize", 85.3), ("Invert", 0), ("Identity", 0), ("Posterize", 5.33)]
)
def test_operations_on_single_values(name, v):
    found = np.asarray(OPERATIONS[name](Image.fromarray(gradient()), v))
    assert found.dtype == np.uint8
    assert (found == np.vectorize(lambda value: plain(name, int(value), v))(gradient())).all()


@pytest.mark.parametrize("axis", ["X", "Y"])
def test_shifts_go_either_way(axis):
    """By whole pixels, or by a share of the side; what was outside is black."""
    random.seed(0)
    before = gradient() if axis == "X" else gradient().transpose(1, 0, 2)
    shifts = {5: np.zeros_like(before), -5: np.zeros_like(before)}
    shifts[5][:, :-5], shifts[-5][:, 5:] = before[:, 5:], before[:, :-5]
    counts = {5: 0, -5: 0}
    image = Image.fromarray(before if axis == "X" else before.transpose(1, 0, 2))
    for name, v in [(f"Translate{axis}abs", 5), (f"Translate{axis}", 5 / 64)] * 100:
        found = np.asarray(OPERATIONS[name](image, v))
        found = found if axis == "X" else found.transpose(1, 0, 2)
        for shift, expected in shifts.items():
            counts[shift] += (found == expected).all()
    assert sum(counts.values()) == 200
    assert abs(counts[5] - 100) < 4 * 50**0.5


def test_a_square_is_cut_out_where_numpy_draws_it():
    for seed in range(10):
        np.random.seed(seed)
        x, y = 40 - 39 * np.random.random(), 30 - 29 * np.random.random()  # from the far end down to 1
        left, top = int(max(x, 5) - 5), int(max(y, 5) - 5)
        np.random.seed(seed)
        found = np.asarray(OPERATIONS["Cutout"](Image.new("RGB", (40, 30)), 10))
        expected = np.zeros((30, 40, 3), dtype=np.uint8)
        expected[top : top + 11, left : left + 11] = FILL
        assert (found == expected).all()


def test_keys_of_randaugment_reach_it():
    cfg = config("", "", INPUT__RANDAUGMENT_N=3, INPUT__RANDAUGMENT_M=7)
    steps = build_transform(cfg, choices=["randaugment", "randaugment2", "randaugment_fixmatch"]).transforms[1:4]
    assert [type(step).__name__ for step in steps] == ["RandAugment", "RandAugmentFixMatch", "RandAugment2"]
    assert [step.n for step in steps] == [3, 3, 3] and steps[0].m == 7
    assert repr(pickle.loads(pickle.dumps(steps[0]))) == "RandAugment(n=3, m=7)"  # as a worker that is spawned gets it


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
    texts = [describe_transform(T.Compose([Unprintable(s), len, sample_image])) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert "0x" not in texts[0]
    assert "strength=1" in texts[0]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_steps_said_to_draw_from_torch_only_leave_the_other_streams_alone(name):
    transform = build_transform(config("", "", INPUT__SIZE=(32, 24), INPUT__GB_K=3), choices=[name])
    states = random.getstate(), np.random.get_state()[2]
    for _ in range(3):
        transform(sample_image(40, 50))
    kept = (random.getstate(), np.random.get_state()[2]) == states
    assert kept or not draws_from_torch_only(transform)


@pytest.mark.parametrize("step", [T.Lambda(len), T.RandomChoice([]), T.RandomApply([Unprintable(1)]), len])
def test_unknown_steps_are_not_said_to_draw_from_torch_only(step):
    assert not draws_from_torch_only(step)
    assert not draws_from_torch_only(T.Compose([T.ToTensor(), step]))
