"""Augmentations that torchvision lacks. H, W: height and width of the picture or tensor."""

import random

import numpy as np
import torch
import torchvision.transforms.functional as F
from torchvision.transforms import InterpolationMode


class Random2DTranslation:
    """With probability p: enlarge to 9/8 of (height, width), crop at random; else resize. PIL in, PIL out."""

    def __init__(self, height, width, p=0.5, interpolation=InterpolationMode.BILINEAR):
        self.height = height
        self.width = width
        self.p = p
        self.interpolation = interpolation

    def __call__(self, img):
        if random.uniform(0, 1) > self.p:
            return F.resize(img, [self.height, self.width], self.interpolation)
        height, width = round(self.height * 1.125), round(self.width * 1.125)
        left = round(random.uniform(0, width - self.width))
        top = round(random.uniform(0, height - self.height))
        return F.crop(F.resize(img, [height, width], self.interpolation), top, left, self.height, self.width)

    def __repr__(self):
        return f"Random2DTranslation(size=({self.height}, {self.width}), p={self.p})"


class Cutout:
    """Zeroes n squares of side `length` at random places of (3, H, W) (DeVries and Taylor 2017)."""

    def __init__(self, n_holes=1, length=16):
        self.n_holes = n_holes
        self.length = length

    def __call__(self, img):
        height, width = img.shape[-2:]
        img = img.clone()
        for _ in range(self.n_holes):
            y, x = np.random.randint(height), np.random.randint(width)
            top, left = max(y - self.length // 2, 0), max(x - self.length // 2, 0)
            img[..., top : y + self.length // 2, left : x + self.length // 2] = 0
        return img

    def __repr__(self):
        return f"Cutout(n_holes={self.n_holes}, length={self.length})"


class GaussianNoise:
    """Adds normal noise to a tensor with probability p."""

    def __init__(self, mean=0.0, std=0.15, p=0.5):
        self.mean = mean
        self.std = std
        self.p = p

    def __call__(self, img):
        if random.uniform(0, 1) > self.p:
            return img
        return img + torch.randn(img.size()) * self.std + self.mean

    def __repr__(self):
        return f"GaussianNoise(mean={self.mean}, std={self.std}, p={self.p})"


class InstanceNormalization:
    """Zero mean and unit (unbiased) deviation per channel of a (3, H, W) tensor."""

    def __init__(self, eps=1e-8):
        self.eps = eps

    def __call__(self, img):
        pixels = img.flatten(1)  # (3, H*W)
        mean, std = pixels.mean(1)[:, None, None], pixels.std(1)[:, None, None]
        return (img - mean) / (std + self.eps)

    def __repr__(self):
        return f"InstanceNormalization(eps={self.eps})"
