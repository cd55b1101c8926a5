"""build_transform: the names of cfg.INPUT.TRANSFORMS as one torchvision pipeline.

The order of the names has no effect; the order of the steps is fixed, and is that of the two tables below.
The RandAugment policies are Dassl's; those of AutoAugment use torchvision's operation tables, whose ranges
differ a little from Dassl's.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as F
from PIL import Image
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode
from yacs.config import CfgNode as CN

from dassl.config import complete
from dassl.utils import check_availability, get_logger

from .randaugment import RandAugment, RandAugment2, RandAugmentFixMatch


@dataclass(eq=False)
class Random2DTranslation:
    """With probability p: enlarge to 9/8 of (height, width), crop at random; else resize. PIL in, PIL out."""

    height: int
    width: int
    p: float = 0.5
    interpolation: InterpolationMode = InterpolationMode.BILINEAR

    def __call__(self, img: Image.Image) -> Image.Image:
        if random.uniform(0, 1) > self.p:
            return F.resize(img, [self.height, self.width], self.interpolation)
        height, width = round(self.height * 1.125), round(self.width * 1.125)
        left = round(random.uniform(0, width - self.width))
        top = round(random.uniform(0, height - self.height))
        return F.crop(F.resize(img, [height, width], self.interpolation), top, left, self.height, self.width)

    def __repr__(self):
        return f"Random2DTranslation(size=({self.height}, {self.width}), p={self.p})"


@dataclass(eq=False)
class Cutout:
    """Zeroes n squares of side `length` at random places of (3, H, W) (DeVries and Taylor 2017)."""

    n_holes: int = 1
    length: int = 16

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        height, width = img.shape[-2:]
        img = img.clone()
        for _ in range(self.n_holes):
            y, x = np.random.randint(height), np.random.randint(width)
            top, left = max(y - self.length // 2, 0), max(x - self.length // 2, 0)
            img[..., top : y + self.length // 2, left : x + self.length // 2] = 0
        return img


@dataclass(eq=False)
class GaussianNoise:
    """Adds normal noise to a tensor with probability p."""

    mean: float = 0.0
    std: float = 0.15
    p: float = 0.5

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        if random.uniform(0, 1) > self.p:
            return img
        return img + torch.randn(img.size()) * self.std + self.mean


@dataclass(eq=False)
class InstanceNormalization:
    """Zero mean and unit (unbiased) deviation per channel of a (3, H, W) tensor."""

    eps: float = 1e-8

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        pixels = img.flatten(1)  # (3, H*W)
        mean, std = pixels.mean(1)[:, None, None], pixels.std(1)[:, None, None]
        return (img - mean) / (std + self.eps)


INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}


def _jitter(inp, mode):
    return T.ColorJitter(inp.COLORJITTER_B, inp.COLORJITTER_C, inp.COLORJITTER_S, inp.COLORJITTER_H)


# name -> (cfg.INPUT, interpolation mode) -> step on PIL images
IMAGE_STEPS = {
    "random_translation": lambda inp, mode: Random2DTranslation(*inp.SIZE),
    "random_crop": lambda inp, mode: T.RandomCrop(inp.SIZE, padding=inp.CROP_PADDING),
    "random_resized_crop": lambda inp, mode: T.RandomResizedCrop(inp.SIZE, inp.RRCROP_SCALE, interpolation=mode),
    "center_crop": lambda inp, mode: T.CenterCrop(inp.SIZE),
    "random_flip": lambda inp, mode: T.RandomHorizontalFlip(),
    "imagenet_policy": lambda inp, mode: T.AutoAugment(AutoAugmentPolicy.IMAGENET),
    "cifar10_policy": lambda inp, mode: T.AutoAugment(AutoAugmentPolicy.CIFAR10),
    "svhn_policy": lambda inp, mode: T.AutoAugment(AutoAugmentPolicy.SVHN),
    "randaugment": lambda inp, mode: RandAugment(inp.RANDAUGMENT_N, inp.RANDAUGMENT_M),
    "randaugment_fixmatch": lambda inp, mode: RandAugmentFixMatch(inp.RANDAUGMENT_N),
    "randaugment2": lambda inp, mode: RandAugment2(inp.RANDAUGMENT_N),
    "colorjitter": _jitter,
    "randomgrayscale": lambda inp, mode: T.RandomGrayscale(p=inp.RGS_P),
    "gaussian_blur": lambda inp, mode: T.RandomApply([T.GaussianBlur(inp.GB_K)], p=inp.GB_P),
}
# name -> cfg.INPUT -> step on tensors
TENSOR_STEPS = {
    "cutout": lambda inp: Cutout(inp.CUTOUT_N, inp.CUTOUT_LEN),
    "normalize": lambda inp: T.Normalize(inp.PIXEL_MEAN, inp.PIXEL_STD),
    "gaussian_noise": lambda inp: GaussianNoise(inp.GN_MEAN, inp.GN_STD),
    "instance_norm": lambda inp: InstanceNormalization(),
}
AVAI_CHOICES = TRANSFORMS = (*IMAGE_STEPS, *TENSOR_STEPS)  # the first is Dassl's name
TEST_STEPS = ("normalize", "instance_norm")  # the only names that act at test time
RESIZE_MODES = ("shortest", "squash")


def build_transform(cfg: CN, is_train: bool = True, choices: Sequence[str] | None = None) -> T.Compose | None:
    """Pipeline from a PIL image to (3, H, W) float32, with (H, W) = cfg.INPUT.SIZE; None if NO_TRANSFORM.

    choices: names instead of cfg.INPUT.TRANSFORMS. An unknown name or interpolation: UserError.
    """
    if complete(cfg).INPUT.NO_TRANSFORM:
        get_logger().info("Note: no transform is applied!")
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    for name in choices:
        check_availability(name, TRANSFORMS, "Each of INPUT.TRANSFORMS")
    check_availability(cfg.INPUT.INTERPOLATION, list(INTERPOLATION_MODES), "INPUT.INTERPOLATION")
    check_availability(cfg.INPUT.RESIZE, RESIZE_MODES, "INPUT.RESIZE")
    mode = INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]
    steps = (_train_steps if is_train else _test_steps)(cfg.INPUT, choices, mode)
    get_logger().debug("\n".join([f"Building transform_{'train' if is_train else 'test'}", *(f"+ {s}" for s in steps)]))
    return T.Compose(steps)


def _train_steps(inp, choices, mode):
    steps = []
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        steps.append(T.Resize(tuple(inp.SIZE), mode))
    steps += [make(inp, mode) for name, make in IMAGE_STEPS.items() if name in choices]
    steps.append(T.ToTensor())
    return steps + [make(inp) for name, make in TENSOR_STEPS.items() if name in choices]


def _test_steps(inp, choices, mode):
    squash = [T.Resize(tuple(inp.SIZE), mode)]
    shortest = [T.Resize(max(inp.SIZE), mode), T.CenterCrop(inp.SIZE)]
    steps = [*(squash if inp.RESIZE == "squash" else shortest), T.ToTensor()]
    return steps + [TENSOR_STEPS[name](inp) for name in TEST_STEPS if name in choices]


def draws_from_torch_only(transform: object) -> bool:
    """Whether all random numbers of `transform` are sure to come from torch: most torchvision steps."""
    kind = type(transform)
    if not kind.__module__.startswith("torchvision.transforms."):
        return False
    if kind.__name__ in ("Lambda", "RandomChoice", "RandomOrder"):  # any function; Python's random
        return False
    return all(map(draws_from_torch_only, getattr(transform, "transforms", ())))


def describe_transform(transform: object) -> str:
    """A text that is equal for equal transforms, in every process and on every machine; for digests.

    An object without a text of its own is described by its class and attributes, a function by its name.
    """
    if isinstance(transform, T.Compose):
        return f"Compose[{', '.join(describe_transform(step) for step in transform.transforms)}]"
    if isinstance(transform, (list, tuple)):
        return f"[{', '.join(describe_transform(step) for step in transform)}]"
    text = repr(transform)
    if not re.search(r" at 0x[0-9a-f]+", text):
        return re.sub(r"\s+", " ", text)
    name = getattr(transform, "__qualname__", type(transform).__qualname__)
    module = getattr(transform, "__module__", "")
    values = ", ".join(f"{k}={describe_transform(v)}" for k, v in sorted(getattr(transform, "__dict__", {}).items()))
    return f"{module}.{name}({values})"
