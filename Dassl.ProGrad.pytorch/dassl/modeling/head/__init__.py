"""Layers between a backbone and the classifier: a module with `out_features`."""

from .build import HEAD_REGISTRY, build_head
from .mlp import mlp

__all__ = ["HEAD_REGISTRY", "build_head", "mlp"]
