"""Residual networks (He et al. 2015, arXiv 1512.03385) from torchvision. B: batch, D: 512 or 2048."""

import os

import torch

from dassl.utils import MissingFile, UserError, load_checkpoint, sha256_file

from .backbone import Backbone
from .build import BACKBONE_REGISTRY


class _ResNet(Backbone):
    """torchvision's layers up to and with the global average pool, under Dassl's keys: (B, 3, H, W) -> (B, D)."""

    def __init__(self, network):
        super().__init__()
        self._out_features = network.fc.in_features
        for name, layer in network.named_children():
            if name != "fc":
                self.add_module(name, layer)

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x.flatten(1)


def cached_weights(url: str) -> dict[str, torch.Tensor]:
    """State dict from torch's cache; the file's name ends in the start of its SHA-256. Nothing is fetched.
    MissingFile: not in the cache. UserError: its SHA-256 is another."""
    name = os.path.basename(url)
    path = os.path.join(torch.hub.get_dir(), "checkpoints", name)
    if not os.path.isfile(path):
        raise MissingFile(f'No weights at "{path}": put {url} there, or set MODEL.BACKBONE.PRETRAINED to False')
    if not (digest := sha256_file(path)).startswith(os.path.splitext(name)[0].rpartition("-")[2]):
        raise UserError(f'"{path}" is damaged: its name says how its SHA-256 begins, which is {digest}')
    return load_checkpoint(path)


def _register(name, width):
    def build(pretrained=True, **kwargs):
        import torchvision

        network = torchvision.models.get_model(name, weights=None)
        if pretrained:
            weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
            network.load_state_dict(cached_weights(weights.url))
        return _ResNet(network)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"D = {width}. MissingFile if `pretrained` and torch's cache does not hold the ImageNet weights."
    return BACKBONE_REGISTRY.register()(build)


resnet18, resnet34 = _register("resnet18", 512), _register("resnet34", 512)
resnet50, resnet101, resnet152 = (_register(f"resnet{depth}", 2048) for depth in (50, 101, 152))
