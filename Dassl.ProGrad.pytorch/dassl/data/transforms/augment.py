"""Augmentations that torchvision lacks. H, W: height and width of the picture or tensor."""

import random
from dataclasses import dataclass

import numpy as np
import torch
import torchvision.transforms.functional as F
from torchvision.transforms import InterpolationMode


@dataclass(eq=False)
class Random2DTranslation:
    """With probability p: enlarge to 9/8 of (height, width), crop at random; else resize. PIL in, PIL out."""

    height: int
    width: int
    p: float = 0.5
    interpolation: InterpolationMode = InterpolationMode.BILINEAR

    def __call__(self, img):
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

    def __call__(self, img):
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

    def __call__(self, img):
        if random.uniform(0, 1) > self.p:
            return img
        return img + torch.randn(img.size()) * self.std + self.mean


@dataclass(eq=False)
class InstanceNormalization:
    """Zero mean and unit (unbiased) deviation per channel of a (3, H, W) tensor."""

    eps: float = 1e-8

    def __call__(self, img):
        pixels = img.flatten(1)  # (3, H*W)
        mean, std = pixels.mean(1)[:, None, None], pixels.std(1)[:, None, None]
        return (img - mean) / (std + self.eps)
