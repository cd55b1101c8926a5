"""Feature extractors: a module with `out_features`."""

from .backbone import Backbone
from .build import BACKBONE_REGISTRY, build_backbone
from .resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from .small import cnn_small

__all__ = [
    "BACKBONE_REGISTRY",
    "Backbone",
    "build_backbone",
    "cnn_small",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
]
